"""A static-file server: what it sends goes from the page cache to the socket, without a copy.

    python examples/files.py DIRECTORY
    curl http://127.0.0.1:8888/NAME -r 100-199

One file of the directory a request: HTTP/1.1 GET, whole or a range of bytes.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

import pyloop


def answer(conn: pyloop.Connection, status: str, size: int, extra: str = "") -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\nAccept-Ranges: bytes\r\n{extra}\r\n"
    conn.write(head.encode())


def serve(conn: pyloop.Connection, request: bytes) -> None:
    """Called with a request's head; the empty line that ends it is the separator."""
    line = re.match(rb"GET /([\w.-]+) HTTP/1\.1\r\n", request + b"\r\n")
    path = root / line[1].decode() if line else root
    if not path.is_file() or not os.access(path, os.R_OK):
        answer(conn, "404 Not Found", 0)
        return
    size = path.stat().st_size
    asked = re.search(rb"\r\nRange: bytes=(\d+)-(\d*)(\r\n|$)", request, re.I)
    first = int(asked[1]) if asked else 0
    last = min(int(asked[2] or size) if asked else size, size - 1)
    if asked and first > last:
        answer(conn, "416 Range Not Satisfiable", 0, f"Content-Range: bytes */{size}\r\n")
    elif size == 0:
        answer(conn, "200 OK", 0)
    else:
        mapped = pyloop.MappedFile(path, last + 1 - first, first)
        extra = f"Content-Range: bytes {first}-{last}/{size}\r\n" if asked else ""
        answer(conn, "206 Partial Content" if asked else "200 OK", len(mapped), extra)
        conn.write(mapped.view())  # which keeps the file mapped until it is sent


def announce(server: pyloop.Server) -> None:
    print(f"files of {root} on 127.0.0.1:{server.port}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A static-file server.")
    parser.add_argument("directory", type=Path, nargs="?", default=Path())
    parser.add_argument("--port", type=int, default=8888, help="0 takes a free one")
    args = parser.parse_args()
    root = args.directory.resolve()
    ends = pyloop.Delimited(b"\r\n\r\n", max_size=8192)
    pyloop.run(pyloop.Server(serve, port=args.port, framing=ends, on_start=announce))
