"""What models thread and fork share: the loop accepts, and each conversation has its own thread.

loop, main thread      accept -> PL_EV_ACCEPTED -> handed_over
thread_model.py        a daemon thread takes the socket
fork_model.py          a child process takes it, and the parent the next one
"""

from __future__ import annotations

import threading
from typing import Any

from pyloop.acceptor import Acceptor
from pyloop.handlers import serve_blocking
from pyloop.mapping import MappedView
from pyloop.outlet import Wake
from pyloop.served import ServedConnection
from pyloop.served_tls import ServedTLSConnection

__all__ = ["BlockingAcceptor"]


class BlockingAcceptor(Acceptor):
    """What the models share: how a connection is made and its handler run."""

    __slots__ = ()

    def cast(self, conn: Any, data: bytes | MappedView) -> None:
        wrap = self.framing._wrap_view(data) if isinstance(data, MappedView) else None
        conn._put(data, wrap, wait=False)

    def _connect(
        self, fd: int, peer: bytes, wake: Wake | None, counters: Any, ident: int
    ) -> ServedConnection:
        kind = ServedConnection if self.server._ssl is None else ServedTLSConnection
        return kind(self, fd, peer, wake, counters, ident)

    def _converse(self, conn: ServedConnection) -> None:
        """Serve a connection to its end, in the thread that is its own."""
        conn._thread = threading.get_ident()
        conn._has_wake()  # before anybody else knows it
        server = self.server
        try:
            ready = conn._shake_hands(server._handshake_timeout)
        except BaseException:
            conn.abort()
            conn._finish(None)
            raise
        if not ready:
            conn._finish(None)
            return
        self.connections.add(conn)
        serve_blocking(conn, server._kind, server._handler)
