"""Answer requests: JSON, each message behind its length in four bytes. rpc_client.py asks.

    {"id": 7, "method": "add", "params": [2, 3]}  ->  {"id": 7, "result": 5}
    {"id": 8, "method": "nonsense"}               ->  {"id": 8, "error": "no method 'nonsense'"}

A client need not wait for a reply before it asks again, and a slow call does not hold up the
ones behind it: replies come in any order, and the id says which request each is for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

import pyloop

CALLS_AT_ONCE = 100  # of one client; its further requests wait in its connection


async def sleep(seconds: float) -> str:
    await asyncio.sleep(min(seconds, 10))
    return f"slept {seconds} s"


METHODS = {"add": lambda a, b: a + b, "upper": str.upper, "sleep": sleep}


async def call(request: Any) -> Any:
    """Return the result of one request, or raise what is wrong with it."""
    if request["method"] not in METHODS:
        raise LookupError(f"no method {request['method']!r}")
    result = METHODS[request["method"]](*request.get("params", ()))
    return await result if asyncio.iscoroutine(result) else result


async def serve(conn: pyloop.Connection) -> None:
    """Start every request of one client as it comes; leave when all are answered."""
    slots = asyncio.Semaphore(CALLS_AT_ONCE)

    async def answer(message: bytes) -> None:
        reply: dict[str, Any] = {"id": None}
        try:
            request = json.loads(message)
            reply["id"] = request["id"]
            reply["result"] = await call(request)
        except Exception as exc:  # the request's fault: the client is told, and nobody else minds
            reply["error"] = str(exc)
        finally:
            slots.release()
        conn.send(json.dumps(reply).encode())

    try:
        async with asyncio.TaskGroup() as calls:
            async for message in conn:
                await slots.acquire()
                await conn.drain()  # a client that does not read gets no more answers made
                calls.create_task(answer(message))
    except* (OSError, pyloop.PyloopError):
        pass  # the client is gone: nobody is left to answer


def announce(server: pyloop.Server) -> None:
    host, port = server.sockets[0].getsockname()[:2]
    print(f"rpc server on {host}:{port}; try: rpc_client.py --port {port}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An RPC server.")
    parser.add_argument("--port", type=int, default=8888, help="0 takes a free one")
    args = parser.parse_args()
    framing = pyloop.LengthPrefixed()
    pyloop.run(pyloop.Server(serve, port=args.port, framing=framing, on_start=announce))
