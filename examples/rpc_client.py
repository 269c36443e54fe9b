"""Ask rpc_server.py, twice: from a plain script, and from asyncio with many calls at once."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any

import pyloop

FRAMING = pyloop.LengthPrefixed()


def request(number: int, method: str, params: Any) -> bytes:
    return json.dumps({"id": number, "method": method, "params": params}).encode()


def ask_all(port: int, calls: list[tuple[str, list[Any]]]) -> list[Any]:
    """Send all requests, then collect the replies, which come in any order. No loop is needed."""
    with pyloop.dial("127.0.0.1", port, framing=FRAMING, timeout=30) as conn:
        for number, (method, params) in enumerate(calls):
            conn.send(request(number, method, params))
        conn.close_writing()  # that was all: the server ends the stream after its last reply
        replies = {reply["id"]: reply for reply in map(json.loads, conn)}
    return [replies[number].get("result") for number in range(len(calls))]


class Client(pyloop.Protocol):
    """For asyncio: `await client.call("add", 2, 3)`, from any number of tasks at once."""

    def __init__(self) -> None:
        self.waiting: dict[int, asyncio.Future[Any]] = {}
        self.count = 0

    def connection_made(self, conn: pyloop.Connection) -> None:
        self.conn = conn

    def message_received(self, message: bytes) -> None:
        reply = json.loads(message)
        future = self.waiting.pop(reply["id"])
        if future.done():  # its caller was cancelled
            return
        if "error" in reply:
            future.set_exception(RuntimeError(reply["error"]))
        else:
            future.set_result(reply["result"])

    def connection_lost(self, exc: BaseException | None) -> None:
        for future in self.waiting.values():
            if not future.done():
                future.set_exception(exc or ConnectionResetError("the server has closed"))

    async def call(self, method: str, *params: Any) -> Any:
        self.count += 1
        future = self.waiting[self.count] = asyncio.get_running_loop().create_future()
        self.conn.send(request(self.count, method, params))
        return await future


async def ask_at_once(port: int) -> None:
    client = Client()
    conn = await pyloop.connect("127.0.0.1", port, framing=FRAMING, protocol=client)
    print(await asyncio.gather(*(client.call("add", n, n) for n in range(10))))
    try:
        await client.call("nonsense")
    except RuntimeError as exc:
        print("refused:", exc)
    conn.close()
    await conn.wait_closed()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A client of rpc_server.py.")
    parser.add_argument("--port", type=int, default=8888)
    args = parser.parse_args()
    print(ask_all(args.port, [("sleep", [0.1]), ("add", [2, 3]), ("upper", ["hello"])]))
    pyloop.run(ask_at_once(args.port))
