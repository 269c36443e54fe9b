"""Ask rpc_server.py, twice: from a plain script, and from asyncio with many calls at once."""

import argparse
import asyncio
import json

import pyloop

FRAMING = pyloop.LengthPrefixed()


def ask_in_a_script(port: int) -> None:
    """Send all requests, then take the replies. There is no loop here: receiving blocks."""
    with pyloop.dial("127.0.0.1", port, framing=FRAMING, timeout=30) as conn:
        for number, (method, *params) in enumerate([("sleep", 0.2), ("add", 2, 3), ("no",)]):
            conn.send(json.dumps({"id": number, "method": method, "params": params}).encode())
        conn.close_writing()  # that was all: the server closes after its last reply
        for reply in conn:
            print(reply.decode())


class Client(pyloop.Protocol):
    """`await client.call("add", 2, 3)`, from any number of tasks at once."""

    def connection_made(self, conn: pyloop.Connection) -> None:
        self.conn, self.count, self.waiting = conn, 0, {}

    def message_received(self, message: bytes) -> None:
        reply = json.loads(message)
        if not (future := self.waiting.pop(reply["id"])).done():  # else cancelled
            future.set_result(reply)

    def connection_lost(self, exc: BaseException | None) -> None:
        for future in self.waiting.values():
            if not future.done():
                future.set_exception(exc or ConnectionResetError("the server has closed"))

    def call(self, method: str, *params: object) -> asyncio.Future[dict]:
        self.count += 1
        self.waiting[self.count] = asyncio.get_running_loop().create_future()
        request = {"id": self.count, "method": method, "params": params}
        self.conn.send(json.dumps(request).encode())
        return self.waiting[self.count]


async def ask_at_once(port: int) -> None:
    client = Client()
    conn = await pyloop.connect("127.0.0.1", port, framing=FRAMING, protocol=client)
    for reply in await asyncio.gather(*(client.call("add", n, n) for n in range(10))):
        print(reply["result"])
    conn.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A client of rpc_server.py.")
    parser.add_argument("--port", type=int, default=8888)
    port = parser.parse_args().port
    ask_in_a_script(port)
    pyloop.run(ask_at_once(port))
