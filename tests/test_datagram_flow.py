"""Datagram endpoints whose receiver is slow: what pyloop's promise of the marks."""

from __future__ import annotations

import asyncio
import socket

from datagrams import Peer, endpoint, udp


def test_filled_again_before_the_resume_is_told_it_stays_paused(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = []

    class Refills(Peer):
        refilled = False

        def fill(self):
            for _ in range(40):
                self.transport.sendto(bytes(5000), "full")
                self.transport.sendto(b"", "nobody")

        def error_received(self, exc):
            super().error_received(exc)
            low, _ = self.transport.get_write_buffer_limits()
            if not self.refilled and self.transport.get_write_buffer_size() <= low:
                self.refilled = True
                self.fill()

        def resume_writing(self):
            super().resume_writing()
            sizes.append(self.transport.get_write_buffer_size())

    async def main():
        loop = asyncio.get_running_loop()
        with udp(socket.AF_UNIX, "full") as sock:
            sock.setblocking(False)
            async with endpoint(Refills, family=socket.AF_UNIX, local_addr="sender") as peer:
                peer.fill()
                assert peer.calls == ["made", "pause"]
                async with asyncio.timeout(20):
                    for _ in range(80):
                        await loop.sock_recv(sock, 6000)
                    await peer.writable.wait()
                assert peer.calls == ["made", "pause", "resume"]
                assert peer.refilled and max(sizes) <= 16384

    run(main())
