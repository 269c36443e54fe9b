"""Models as arguments: which there are, what each takes, where each can be run."""

from __future__ import annotations

import functools

import pytest

import pyloop


def message(conn, message):
    pass


def blocking(conn):
    pass


async def coroutine(conn):
    pass


async def async_message(conn, message):
    pass


@pytest.mark.parametrize("model", ["process", "", None, 3, "Thread", ["loop"]])
def test_unknown_model_is_named_with_what_is_expected(model):
    with pytest.raises(ValueError, match="model: expected one of loop, thread, fork, got") as info:
        pyloop.Server(message, model=model)
    assert repr(model) in str(info.value)


@pytest.mark.parametrize("model", ["loop", "thread", "fork"])
@pytest.mark.parametrize("handler", [message, pyloop.Protocol, lambda: pyloop.Protocol()])
def test_messages_and_protocols_are_taken_by_every_model(model, handler):
    pyloop.Server(handler, model=model)


@pytest.mark.parametrize("model", ["thread", "fork"])
def test_blocking_conversation_is_taken_by_thread_and_fork_only(model):
    pyloop.Server(blocking, model=model)
    pyloop.Server(functools.partial(message, message=b""), model=model)
    with pytest.raises(TypeError, match='would block the loop; model "loop" takes'):
        pyloop.Server(blocking)


@pytest.mark.parametrize("model", ["thread", "fork"])
@pytest.mark.parametrize("handler", [coroutine, async_message])
def test_coroutines_are_refused_with_what_the_model_takes(model, handler):
    with pytest.raises(TypeError) as info:
        pyloop.Server(handler, model=model)
    assert str(info.value).endswith(
        f'is a coroutine function, and there is no loop to run it; model "{model}" takes one of: '
        "a pyloop.Protocol subclass or a callable without arguments that makes one; "
        "def (conn, message); def (conn)"
    )


@pytest.mark.parametrize("model", ["thread", "fork"])
def test_start_inside_a_program_names_run(run, model):
    async def main():
        server = pyloop.Server(message, model=model)
        for start in (server.start, server.serve_forever, server.__aenter__):
            with pytest.raises(RuntimeError, match=f'model="{model}" is served by pyloop.run'):
                await start()
        assert server.port is None

    run(main())


@pytest.mark.parametrize("model", ["thread", "fork"])
def test_run_takes_them_alone(model):
    alone, other = pyloop.Server(message, port=1, model=model), pyloop.Server(message, port=2)
    with pytest.raises(
        ValueError, match=f'run\\(\\) got 2 Servers, but one of model="{model}"'
    ) as i:
        pyloop.run(other, alone)
    assert "127.0.0.1:1" in str(i.value) and "127.0.0.1:2" in str(i.value)


@pytest.mark.parametrize(("model", "most"), [("loop", 0), ("thread", 1000), ("fork", 512)])
def test_connections_are_capped_by_default(model, most):
    assert pyloop.Server(message, model=model)._group.options.max_connections == most
    assert (
        pyloop.Server(message, model=model, max_connections=7)._group.options.max_connections == 7
    )
