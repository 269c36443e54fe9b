"""Answer requests: JSON, each message behind its length in four bytes. rpc_client.py asks.

    {"id": 7, "method": "add", "params": [2, 3]}  ->  {"id": 7, "result": 5}
    {"id": 8, "method": "no", "params": []}       ->  {"id": 8, "error": "KeyError: 'no'"}

Replies come in any order, told apart by id: a slow call does not hold up those behind it.
"""

import argparse
import asyncio
import json

import pyloop


async def add(a: float, b: float) -> float:
    return a + b


METHODS = {"add": add, "sleep": lambda seconds: asyncio.sleep(min(10, seconds))}


async def answer(conn: pyloop.Connection, message: bytes) -> None:
    number = None
    try:
        request = json.loads(message)
        number = request["id"]
        result = await METHODS[request["method"]](*request["params"])
        conn.send(json.dumps({"id": number, "result": result}).encode())
    except Exception as exc:  # the request's fault: tell the client
        error = f"{type(exc).__name__}: {exc}"[:200]
        conn.send(json.dumps({"id": number, "error": error}).encode())


async def serve(conn: pyloop.Connection) -> None:
    """Start each request of one client as it comes; leave when all are answered."""
    slots = asyncio.Semaphore(100)  # calls of one client at once: its further requests wait
    try:
        async with asyncio.TaskGroup() as calls:
            async for message in conn:
                await conn.drain()  # who does not read is not served
                await slots.acquire()
                calls.create_task(answer(conn, message)).add_done_callback(
                    lambda _: slots.release()
                )
    except* (OSError, pyloop.PyloopError):
        pass  # the client is gone: there is nobody to answer


def announce(server: pyloop.Server) -> None:
    print(f"rpc server on 127.0.0.1:{server.port}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An RPC server.")
    parser.add_argument("--port", type=int, default=8888, help="0 takes a free one")
    port, framing = parser.parse_args().port, pyloop.LengthPrefixed()
    pyloop.run(pyloop.Server(serve, port=port, framing=framing, on_start=announce))
