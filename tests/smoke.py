"""Does an installed pyloop serve? Run by `make wheel` and cibuildwheel, away from the checkout.

A program of its own, without pytest: it prints one line and exits 0, or fails with a traceback.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import threading
from importlib.resources import files

import pyloop

LINES = [b"one", b"two" * 1000, b""]


def upper(conn: pyloop.Connection, line: bytes) -> None:
    conn.send(line.upper())


def main() -> None:
    heard: list[bytes] = []
    logged: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = logged.append  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)

    def talk(port: int) -> None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=30) as peer:
                peer.sendall(b"".join(line + b"\n" for line in LINES))
                peer.shutdown(socket.SHUT_WR)
                with peer.makefile("rb") as stream:
                    heard.extend(stream.read().split(b"\n")[:-1])
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    def start_client(server: pyloop.Server) -> None:
        threading.Thread(target=talk, args=(server.port,)).start()

    server = pyloop.Server(upper, port=0, framing=pyloop.Lines(), on_start=start_client)
    assert pyloop.run(server) is None
    assert heard == [line.upper() for line in LINES], heard
    gc.collect()  # asyncio tells of forgotten exceptions then
    assert not logged, [record.getMessage() for record in logged]
    assert not pyloop.Semaphore(0).wait(0.01)  # the C library's way to wait is found at run time
    assert files("pyloop").joinpath("metrics.html").is_file()
    info = pyloop.info()
    wanted = info.implementation == "CPython" and os.environ.get("PYLOOP_FASTPATH") != "0"
    assert bool(info.fastpath) == wanted, info.why_not
    print(f"smoke test passed\n{info}")


if __name__ == "__main__":
    main()
