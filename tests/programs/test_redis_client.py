"""redis-py's asyncio client with a real redis-server: pipelines, publish/subscribe, big values."""

from __future__ import annotations

import asyncio
import itertools
import os

import pytest
from bodies import blocks, standstill
from brokers import RedisServer
from redis import asyncio as redis

BIG = b"".join(blocks(10 << 20))
_keys = itertools.count()


class Server(RedisServer):
    """On a Unix socket too."""

    def arguments(self):
        return [*super().arguments(), "--unixsocket", "socket"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def key():
    return f"{os.getpid()}-{next(_keys)}"


@pytest.fixture
def talk(server, run):
    """`talk(main)`: run a coroutine function with a client."""

    def talk(main, **options):
        async def talking():
            async with redis.Redis(port=server.port, **options) as client:
                await main(client)

        run(talking(), 60)

    return talk


@pytest.mark.parametrize("way", ["tcp", "unix"])
def test_big_values_and_long_pipelines_come_back(server, talk, key, way):
    async def main(client):
        await client.set(key, BIG)
        assert await client.get(key) == BIG
        async with client.pipeline(transaction=False) as pipeline:
            for number in range(5000):
                pipeline.rpush(key + "list", number)
            assert await pipeline.execute() == list(range(1, 5001))
        got = await client.lrange(key + "list", 0, -1)
        assert got == [b"%d" % number for number in range(5000)]
        await client.delete(key, key + "list")

    path = {"unix_socket_path": str(server.directory / "socket")} if way == "unix" else {}
    talk(main, **path)


def test_transaction_is_tried_again_until_nobody_interferes(talk, key):
    async def main(client):
        async def count():
            async def step(pipeline):
                value = int(await pipeline.get(key) or 0)
                pipeline.multi()
                pipeline.set(key, value + 1)

            await client.transaction(step, key)

        await asyncio.gather(*(count() for _ in range(10)))
        assert await client.get(key) == b"10"

    talk(main)


def test_subscriber_hears_all_in_order(talk, key):
    async def main(client):
        async with client.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.subscribe(key)
            while not (await client.pubsub_numsub(key))[0][1]:
                await asyncio.sleep(0)
            for number in range(500):
                await client.publish(key, number)
            heard = []
            async for message in pubsub.listen():
                heard.append(int(message["data"]))
                if len(heard) == 500:
                    break
            assert heard == list(range(500))

    talk(main)


def test_blocking_pops_meet_the_pushes(talk, key):
    async def main(client):
        pops = [asyncio.create_task(client.blpop([key], timeout=30)) for _ in range(50)]
        while (await client.info("clients"))["blocked_clients"] < 50:
            await asyncio.sleep(0)
        for number in range(50):
            await client.rpush(key, number)
        got = await asyncio.gather(*pops)
        assert sorted(int(value) for _, value in got) == list(range(50))

    talk(main)


def test_cancelled_pop_takes_nothing_and_frees_the_client(talk, key):
    async def main(client):
        while (await client.info("clients"))["blocked_clients"]:
            await asyncio.sleep(0)  # of the test before, which the server has not missed yet
        for number in range(10):
            pop = asyncio.create_task(client.blpop([key], timeout=30))
            while not (await client.info("clients"))["blocked_clients"]:
                await asyncio.sleep(0)
            pop.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pop
            while (await client.info("clients"))["blocked_clients"]:
                await asyncio.sleep(0)
            await client.rpush(key, number)
            assert await client.lpop(key) == b"%d" % number

    talk(main)


def test_cancelled_transfer_of_a_big_value_frees_the_client(talk, key):
    async def main(client):
        await client.set(key, BIG)
        for _ in range(5):
            get = asyncio.create_task(client.get(key))
            for _ in range(20):
                await asyncio.sleep(0)
            get.cancel()
            await asyncio.gather(get, return_exceptions=True)
        assert await client.strlen(key) == len(BIG)
        assert await client.get(key) == BIG
        await client.delete(key)

    talk(main)


def test_server_that_stands_still_holds_the_sender_back(server, talk, key):
    sent = 0

    async def fill(connection):
        nonlocal sent
        for value in blocks(50 << 20, 1 << 20):
            await connection.send_command("SET", key, value)
            sent += len(value)
        return [await connection.read_response() for _ in range(50)]

    async def main(client):
        await client.initialize()
        with server.standing_still():
            filling = asyncio.create_task(fill(client.connection))
            assert await standstill(lambda: sent) < 25 << 20
        assert await filling == [b"OK"] * 50
        assert await client.get(key) == list(blocks(50 << 20, 1 << 20))[-1]

    talk(main, single_connection_client=True)


def test_server_that_ends_is_an_error_and_its_successor_is_found(run, tmp_path):
    async def main():
        async with redis.Redis(port=server.port, retry=None) as client:
            pop = asyncio.create_task(client.blpop(["nothing"], timeout=30))
            while not (await client.info("clients"))["blocked_clients"]:
                await asyncio.sleep(0)
            server.stop()
            with pytest.raises(redis.ConnectionError):
                await pop
            assert server.start(), server.log()
            assert await client.ping()

    with RedisServer(tmp_path) as server:
        run(main(), 60)
