"""Hold TLS connections open, as `load --hold` does with plain ones.

    python hold_tls.py CERTIFICATE --port PORT --hold --connections 500 --size 64

Opens them one after the other, echoes once over each, prints "ready held=500 errors=0",
and holds them until stdin ends or SIGTERM.
"""

from __future__ import annotations

import argparse
import socket
import ssl
import sys

PATIENCE_SECONDS = 20


def connect(context: ssl.SSLContext, port: int, size: int) -> ssl.SSLSocket:
    """Return a connection over which `size` bytes went and came back."""
    sock = socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS)
    conn = context.wrap_socket(sock, server_hostname="localhost")
    sent = bytes(byte % 251 for byte in range(size))
    conn.sendall(sent)
    came = b""
    while len(came) < size and (data := conn.recv(size - len(came))):
        came += data
    if came != sent:
        raise OSError("an echo differs from what was sent")
    return conn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("certificate", help="file of the authority that is trusted")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--hold", action="store_true", required=True)
    parser.add_argument("--connections", type=int, default=500)
    parser.add_argument("--size", type=int, default=64)
    args = parser.parse_args()
    context = ssl.create_default_context(cafile=args.certificate)
    held = [connect(context, args.port, args.size) for _ in range(args.connections)]
    print(f"ready held={len(held)} errors=0", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
