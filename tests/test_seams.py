"""The private seams of asyncio on which pyloop builds, on this version of Python."""

from __future__ import annotations

import asyncio
import inspect
from asyncio import base_events, selector_events, sslproto, transports

import pytest

from pyloop import seams
from pyloop.datagram_calls import DatagramCalls
from pyloop.handles import Handle, TimerHandle
from pyloop.loop import Loop
from pyloop.pipes import Pipes
from pyloop.running import Running
from pyloop.sock_calls import SocketCalls
from pyloop.streams import Streams
from pyloop.tls_protocol import TLSProtocol

OVERRIDDEN = [
    "_make_socket_transport",
    "_make_ssl_transport",
    "_make_read_pipe_transport",
    "_make_write_pipe_transport",
    "_start_serving",
    "_stop_serving",
    "_sendfile_native",
    "_make_self_pipe",
    "_close_self_pipe",
    "_write_to_self",
    "_process_events",
    "_run_once",
    "_make_datagram_transport",
    "_ensure_fd_no_transport",
    "_add_reader",
    "_add_writer",
    "_remove_reader",
    "_remove_writer",
]


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_overridden_seam_is_one_of_the_stdlib_and_is_named_in_the_list(name):
    assert callable(getattr(asyncio.SelectorEventLoop, name))
    assert getattr(Loop, name) is not getattr(asyncio.SelectorEventLoop, name)
    assert name in seams.__doc__


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_overridden_seam_takes_what_the_stdlib_passes(name):
    theirs = inspect.signature(getattr(asyncio.SelectorEventLoop, name)).parameters
    ours = inspect.signature(getattr(Loop, name)).parameters
    rest = any(p.kind is p.VAR_KEYWORD for p in ours.values())
    assert rest or set(theirs) <= set(ours) or len(theirs) == len(ours)
    required = [p for p in ours.values() if p.default is p.empty and p.kind < p.VAR_POSITIONAL]
    assert len(required) <= len(theirs)


def test_no_method_of_the_stdlib_is_hidden_that_is_not_in_the_list():
    for part in (Streams, Pipes, SocketCalls, DatagramCalls, Running):
        for name in vars(part):
            private = name.startswith("_") and not name.startswith("__")
            hides = private and hasattr(asyncio.SelectorEventLoop, name)
            assert not hides or name in OVERRIDDEN, name


def test_handles_have_the_slots_that_are_filled_and_no_others(loop):
    for theirs, ours in ((asyncio.Handle, Handle), (asyncio.TimerHandle, TimerHandle)):
        at = (0.0,) if theirs is asyncio.TimerHandle else ()
        made = theirs(*at, print, (), loop, None)
        slots = {name for kind in theirs.__mro__ for name in getattr(kind, "__slots__", ())}
        filled = {name for name in slots if hasattr(made, name)}
        call = loop.call_at if at else loop.call_soon
        assert filled == {name for name in slots if hasattr(call(*at, print), name)}
        assert issubclass(ours, theirs)


def test_flow_control_has_no_dict_and_what_transports_call_of_it():
    assert "__slots__" in vars(transports._FlowControlMixin)
    for name in (
        "_maybe_pause_protocol",
        "_maybe_resume_protocol",
        "_set_write_buffer_limits",
        "get_write_buffer_limits",
    ):
        assert callable(getattr(seams.FlowControlMixin, name))


def test_tls_protocol_has_what_ours_builds_on():
    source = inspect.getsource(sslproto.SSLProtocol)
    assert callable(sslproto.SSLProtocol._wakeup_waiter)
    assert "bytearray(self.max_size)" in source and "self._incoming.write(" in source
    for name in ("_do_read", "_do_read__copied", "_do_write", "_process_outgoing"):
        assert f"self.{name}()" in source and name in vars(TLSProtocol)
    assert "_ssl_protocol._write_appdata(" in inspect.getsource(sslproto._SSLProtocolTransport)
    assert "_write_appdata" in vars(TLSProtocol)
    made = inspect.getsource(sslproto.SSLProtocol._get_app_transport)
    assert "self._app_transport = _SSLProtocolTransport(self._loop, self)" in made
    assert "_get_app_transport" in vars(TLSProtocol)
    assert seams.SSLTransport is sslproto._SSLProtocolTransport
    assert issubclass(seams.SSLProtocol, asyncio.BufferedProtocol)
    assert selector_events.sslproto.SSLProtocol is seams.SSLProtocol
    assert base_events.Server._attach is not None
