"""asyncio's stream transports: how they write, when the protocol is paused, and half-close."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peers import RESET, until
from transports import ORACLE, Recorder, Refills, attached, fill, receive, tcp_pair, turns

pytestmark = ORACLE


# ---- what is written ----


def test_order_of_writes_small_and_large_is_kept(run):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, peer):
            pieces = [os.urandom(size) for size in (1, 70_000, 0, 5, 65_536, 1 << 20, 3, 200_000)]
            for piece in pieces:
                transport.write(piece)
            transport.writelines(pieces)
            whole = b"".join(pieces) * 2
            assert await receive(peer, len(whole)) == whole

    run(main())


def test_write_takes_its_data_by_name_and_nothing_else(run):
    async def main():
        async with attached(Recorder()) as (transport, peer):
            transport.write(data=b"ok")
            for args, named in (((), {}), ((), {"date": b"x"}), ((b"x",), {"data": b"x"})):
                with pytest.raises(TypeError):
                    transport.write(*args, **named)
            with pytest.raises(TypeError):
                transport.write(b"x", b"x")
            transport.write(bytearray(b"!"))
            assert await receive(peer, 3) == b"ok!"

    run(main())


def test_wrong_type_is_refused_and_writes_nothing(run):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, peer):
            for data in ("text", None, 5, [b"a"], object()):
                kind = type(data).__name__
                with pytest.raises(
                    TypeError, match=f"data argument must be a bytes-like object, not '{kind}'"
                ):
                    transport.write(data)
            with pytest.raises(TypeError):
                transport.writelines([b"one", 5])
            transport.write(b"ok")
            assert await receive(peer, 2) == b"ok"

    run(main())


def test_empty_write_sends_nothing_and_is_no_lost_write(run, caplog):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, peer):
            for empty in (b"", bytearray(), memoryview(b"")):
                transport.write(empty)
            transport.writelines([])
            await turns()
            with pytest.raises(BlockingIOError):
                peer.recv(1)
            transport.close()
            for _ in range(20):
                transport.write(b"")

    run(main())
    assert caplog.messages == []


# ---- half-close ----


def test_write_eof_follows_what_is_queued_and_reading_goes_on(run):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, peer):
            assert transport.can_write_eof()
            data = os.urandom(2 << 20)
            transport.write(data)
            transport.write_eof()
            transport.write_eof()
            for call in (transport.write, lambda _: transport.writelines([b"x"])):
                with pytest.raises(RuntimeError, match=r"Cannot call write\w*\(\) after write_eof"):
                    call(b"more")
            assert await receive(peer, len(data) + 1) == data
            with pytest.raises(RuntimeError, match=r"Cannot call write\(\) after write_eof\(\)"):
                transport.write(b"")
            assert not transport.is_closing() and transport.is_reading()
            peer.send(b"answer")
            await until(lambda: protocol.data == b"answer")
            transport.close()
            transport.write_eof()
            assert await protocol.lost is None

    run(main())


def test_write_eof_then_close_sends_all(run):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, peer):
            data = os.urandom(2 << 20)
            transport.write(data)
            transport.write_eof()
            transport.close()
            assert await receive(peer, len(data) + 1) == data
            assert await protocol.lost is None

    run(main())


# ---- after the end ----


@pytest.mark.parametrize("end", ["close", "abort"])
def test_write_after_the_end_is_dropped_and_warned_about(run, caplog, end):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, peer):
            getattr(transport, end)()
            for _ in range(4):
                transport.write(b"dropped")
            assert caplog.messages == []
            await protocol.lost
            for _ in range(4):
                transport.write(bytearray(b"dropped"))
            assert set(caplog.messages) == {"socket.send() raised exception."}
            assert await receive(peer, 1) == b""
            assert transport.get_write_buffer_size() == 0
            transport.close()
            transport.abort()

    run(main())


def test_write_after_the_peer_has_gone_is_dropped_and_the_loss_told(run, caplog):
    async def main():
        protocol = Recorder(keep_open=True)
        async with attached(protocol, tcp_pair()) as (transport, peer):
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            transport.pause_reading()  # so that it is the write that meets the reset
            peer.close()
            while not protocol.lost.done():
                transport.write(b"into the void")
                await asyncio.sleep(0)
            assert isinstance(await protocol.lost, (ConnectionResetError, BrokenPipeError))
            for _ in range(10):
                transport.write(b"into the void")
            assert protocol.calls == ["made", "lost"] and transport.is_closing()

    run(main())
    assert set(caplog.messages) == {"socket.send() raised exception."}


# ---- limits ----


def test_limits_have_asyncios_defaults_and_rules(run):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, _):
            limits = transport.get_write_buffer_limits
            assert limits() == (16 * 1024, 64 * 1024)
            transport.set_write_buffer_limits(high=1000)
            assert limits() == (250, 1000)
            transport.set_write_buffer_limits(low=1000)
            assert limits() == (1000, 4000)
            transport.set_write_buffer_limits(high=0)
            assert limits() == (0, 0)
            transport.set_write_buffer_limits()
            assert limits() == (16 * 1024, 64 * 1024)
            with pytest.raises(ValueError, match=r"high \(1\) must be >= low \(2\) must be >= 0"):
                transport.set_write_buffer_limits(high=1, low=2)
            with pytest.raises(ValueError, match="must be >= 0"):
                transport.set_write_buffer_limits(high=-1)
            assert limits() == (16 * 1024, 64 * 1024)

    run(main())


@pytest.mark.parametrize("high", [0, 1, 1000, None])
def test_protocol_is_paused_over_high_and_resumed_at_low(run, high):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, peer):
            transport.set_write_buffer_limits(high=high)
            low, high_bytes = transport.get_write_buffer_limits()
            written = fill(transport, protocol, 5000)
            assert transport.get_write_buffer_size() > high_bytes
            transport.write(b"one more")
            assert protocol.calls == ["made", "pause"]
            await receive(peer, len(written) + 8)
            await until(lambda: protocol.calls == ["made", "pause", "resume"])
            assert transport.get_write_buffer_size() <= low

    run(main())


def test_limits_lowered_under_what_is_queued_pause_at_once(run):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, peer):
            transport.set_write_buffer_limits(high=8 << 20)
            transport.write(bytes(4 << 20))
            assert protocol.calls == ["made"] and transport.get_write_buffer_size() > 0
            transport.set_write_buffer_limits(high=1)
            assert protocol.calls == ["made", "pause"]
            await receive(peer, 4 << 20)
            await until(lambda: protocol.calls == ["made", "pause", "resume"])

    run(main())


def test_limits_raised_over_what_is_queued_never_leave_the_protocol_stuck(run):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, peer):
            transport.write(bytes(4 << 20))
            assert protocol.calls == ["made", "pause"]
            transport.set_write_buffer_limits(high=16 << 20, low=8 << 20)
            await receive(peer, 4 << 20)  # asyncio's resumes with the next write that succeeds
            await until(lambda: protocol.calls == ["made", "pause", "resume"])

    run(main())


def test_limits_set_in_connection_made_hold(run):
    class Limited(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=0)

    async def main():
        protocol = Limited()
        async with attached(protocol) as (transport, peer):
            written = fill(transport, protocol, 30_000)
            size = transport.get_write_buffer_size()
            assert 0 < size <= 30_000
            await receive(peer, len(written))
            await until(lambda: protocol.calls == ["made", "pause", "resume"])

    run(main())


def test_write_in_resume_writing_pauses_again(run):
    async def main():
        protocol = Refills()
        async with attached(protocol) as (transport, peer):
            transport.write(bytes(2 << 20))
            await receive(peer, 6 * (2 << 20))
            await until(lambda: protocol.calls.count("resume") == 6)
            assert protocol.calls == ["made", *["pause", "resume"] * 6]

    run(main())


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 400_000)),
        st.tuples(st.just("read"), st.integers(1, 400_000)),
        st.tuples(st.just("limits"), st.integers(0, 200_000), st.integers(0, 200_000)),
        st.tuples(st.just("turn")),
    ),
    max_size=12,
)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS)
def test_pauses_and_resumes_alternate_and_nobody_is_left_paused(run, steps):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, peer):
            written = 0
            for step, *args in steps:
                if step == "write":
                    transport.write(bytes(args[0]))
                    written += args[0]
                elif step == "read":
                    try:
                        written -= len(peer.recv(args[0]))
                    except BlockingIOError:
                        pass
                elif step == "limits":
                    low, high = sorted(args)
                    transport.set_write_buffer_limits(high=high, low=low)
                else:
                    await asyncio.sleep(0)
                paused = protocol.calls.count("pause") - protocol.calls.count("resume")
                assert paused in (0, 1)
                if transport.get_write_buffer_size() > transport.get_write_buffer_limits()[1]:
                    assert paused
            await receive(peer, written)
            await until(lambda: not transport.get_write_buffer_size())
            await turns()
            flow = protocol.calls[1:]
            assert flow == ["pause", "resume"] * (len(flow) // 2)

    run(main())


def test_written_by_others_before_the_resume_is_told_it_is_told_all_the_same(run):
    async def main():
        protocol = Recorder()
        async with attached(protocol) as (transport, peer):
            written = fill(transport, protocol)
            queued = transport.get_write_buffer_size()
            transport.set_write_buffer_limits(high=4 * queued, low=queued)  # PL_EV_RESUME is due
            transport.write(b"x")  # and it is above the low mark again, not above the high one
            await turns()
            assert await receive(peer, len(written) + 1) == written + b"x"
            async with asyncio.timeout(20):
                await until(lambda: "resume" in protocol.calls)
            assert protocol.calls == ["made", "pause", "resume"]

    run(main())
