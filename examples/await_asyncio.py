"""Handlers that await asyncio code: a thread, another program, a time-out.

    python examples/await_asyncio.py
    nc 127.0.0.1 8888

Then type "hash secret" or "sort c a b".
"""

import argparse
import asyncio
import hashlib

import pyloop


async def hash_slowly(text: bytes) -> bytes:
    """Work that would hold up the loop goes to a thread."""
    digest = await asyncio.to_thread(hashlib.pbkdf2_hmac, "sha256", text, b"salt", 100_000)
    return digest.hex().encode()


async def sort_words(text: bytes) -> bytes:
    """Another program is awaited like anything else."""
    pipe = asyncio.subprocess.PIPE
    sort = await asyncio.create_subprocess_exec("sort", stdin=pipe, stdout=pipe)
    out, _ = await sort.communicate(b"\n".join(text.split()) + b"\n")
    return b" ".join(out.split())


COMMANDS = {b"hash": hash_slowly, b"sort": sort_words}


async def answer(conn: pyloop.Connection, line: bytes) -> None:
    """Answer one line. The next of this client waits meanwhile; other clients do not."""
    name, _, text = line.partition(b" ")
    if name not in COMMANDS:
        conn.send(b"commands: " + b", ".join(COMMANDS))
        return
    try:
        async with asyncio.timeout(10):
            conn.send(await COMMANDS[name](text))
    except TimeoutError:
        conn.send(b"that took too long")


def announce(server: pyloop.Server) -> None:
    """Say where the server is: it listens by now, so port 0 has become a number."""
    print(f"server on 127.0.0.1:{server.port}; try: nc 127.0.0.1 {server.port}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A server whose handlers await asyncio code.")
    parser.add_argument("--port", type=int, default=8888, help="0 takes a free one")
    port = parser.parse_args().port
    pyloop.run(pyloop.Server(answer, port=port, framing=pyloop.Lines(), on_start=announce))
