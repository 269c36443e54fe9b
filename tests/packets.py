"""Datagrams as a loop has them all day: more of what tests/operations.py has."""

from __future__ import annotations

import asyncio
from typing import Any

import pyloop

WRITABLE: tuple[Any, ...] = (
    *(b"bytes", bytearray(b"array"), memoryview(b"view")),
    *(memoryview(bytearray(20))[::2], b"", "refused", None, [b"refused"]),
)


def datagrams(loop: pyloop.Loop, count: int) -> None:
    """Datagrams to oneself, of all types; some are refused."""

    class Peer(asyncio.DatagramProtocol):
        received = 0

        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.received += 1
            if data == b"array":
                raise LookupError("a fault")

    async def main() -> None:
        local = ("127.0.0.1", 0)
        ends = [await loop.create_datagram_endpoint(Peer, local_addr=local) for _ in range(2)]
        (first, peer), (second, _) = ends
        where, sent = first.get_extra_info("sockname"), 0

        for number in range(count // 10):
            data = WRITABLE[number % len(WRITABLE)]
            for transport, to in ((first, where), (second, where), (second, None)):
                try:
                    transport.sendto(data, to)
                    sent += 1
                except TypeError:
                    pass
            while number % 20 == 0 and peer.received < sent:  # no more than the kernel has room for
                await asyncio.sleep(0)
        for transport, _ in ends:
            transport.abort()
            transport.sendto(b"late", where)
        await asyncio.sleep(0)

    loop.set_exception_handler(lambda loop, context: None)
    loop.run_until_complete(asyncio.wait_for(main(), 60))
    loop.set_exception_handler(None)
