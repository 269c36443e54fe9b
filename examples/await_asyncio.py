"""Handlers that await asyncio code: a thread, another program, asyncio's own streams.

    python examples/await_asyncio.py
    nc 127.0.0.1 8888              (then type: hash secret, sort c a b, or reverse hello)

pyloop.Loop is an asyncio event loop, so whatever was written for asyncio runs beside the server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
from functools import partial

import pyloop

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


async def hash_slowly(text: bytes) -> bytes:
    """Work that would block the loop goes to a thread."""
    digest = await asyncio.to_thread(hashlib.pbkdf2_hmac, "sha256", text, b"salt", 100_000)
    return digest.hex().encode()


async def sort_words(text: bytes) -> bytes:
    """Other programs are awaited like anything else."""
    pipe = asyncio.subprocess.PIPE
    sort = await asyncio.create_subprocess_exec("sort", stdin=pipe, stdout=pipe)
    out, _ = await sort.communicate(b"\n".join(text.split()) + b"\n")
    return b" ".join(out.split())


async def reverse_elsewhere(port: int, text: bytes) -> bytes:
    """Ask another server, with asyncio's streams."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text + b"\n")
    answer = await reader.readline()
    writer.close()
    return answer.rstrip(b"\n")


async def reverse(reader: Reader, writer: Writer) -> None:
    """The other server: asyncio's, on the same loop."""
    writer.write((await reader.readline()).rstrip(b"\n")[::-1] + b"\n")
    writer.close()


async def main(port: int) -> None:
    other = await asyncio.start_server(reverse, "127.0.0.1", 0)
    ask_other = partial(reverse_elsewhere, other.sockets[0].getsockname()[1])
    commands = {b"hash": hash_slowly, b"sort": sort_words, b"reverse": ask_other}

    async def answer(conn: pyloop.Connection, line: bytes) -> None:
        """One line at a time: the next line of this client waits, other clients do not."""
        name, _, text = line.partition(b" ")
        known = commands.get(name)
        conn.send(await known(text) if known else b"commands: " + b", ".join(commands))

    async with other, pyloop.Server(answer, port=port, framing=pyloop.Lines()) as server:
        print(f"server on 127.0.0.1:{server.port}; try: nc 127.0.0.1 {server.port}", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A server whose handlers await asyncio code.")
    parser.add_argument("--port", type=int, default=8888, help="0 takes a free one")
    with contextlib.suppress(KeyboardInterrupt):  # run(coroutine) raises it, as asyncio.run does
        pyloop.run(main(parser.parse_args().port))
