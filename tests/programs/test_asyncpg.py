"""asyncpg with a real PostgreSQL: by TCP, TLS and Unix socket; COPY, NOTIFY, cancellation."""

from __future__ import annotations

import asyncio
import ssl

import asyncpg
import pytest
from bodies import blocks, digest, digest_async, on_two_backends
from postgres import CA, PostgresServer

BIG = 20 << 20
WAYS = pytest.mark.parametrize("way", ["tcp", "tls", "unix"])


@pytest.fixture(scope="module")
def server():
    with PostgresServer() as server:
        yield server


def options(server, way="tcp"):
    """Where it is, for `connect` and `create_pool`."""
    context = ssl.create_default_context()
    CA.configure_trust(context)
    return {
        "host": str(server.directory) if way == "unix" else server.host,
        "port": server.port,
        "user": "postgres",
        "database": "postgres",
        "ssl": context if way == "tls" else False,
    }


@pytest.fixture
def connected(server, run):
    """`connected(main, way="tcp")`: run a coroutine function with a connection."""

    def connected(main, way="tcp"):
        async def talk():
            conn = await asyncpg.connect(**options(server, way))
            try:
                await main(conn)
            finally:
                await conn.close()

        run(talk(), 60)

    return connected


@WAYS
@on_two_backends
def test_queries_and_big_values_come_back(connected, way):
    async def main(conn):
        assert await conn.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") == (
            way == "tls"
        )
        rows = await conn.fetch("SELECT n, n::text AS t FROM generate_series(1, 20000) n")
        assert [tuple(row) for row in rows] == [(n, str(n)) for n in range(1, 20001)]
        value = b"".join(blocks(BIG))
        assert await conn.fetchval("SELECT $1::bytea", value) == value
        await conn.execute("CREATE TEMP TABLE t (n int)")
        await conn.executemany("INSERT INTO t VALUES ($1)", [(n,) for n in range(5000)])
        assert await conn.fetchval("SELECT sum(n) FROM t") == sum(range(5000))

    connected(main, way)


@WAYS
@on_two_backends
def test_copy_carries_bytes_in_and_out(connected, way):
    async def lines():
        for block in blocks(BIG):
            yield block.hex().encode() + b"\n"

    async def main(conn):
        await conn.execute("CREATE TEMP TABLE t (id serial, line text)")
        assert await conn.copy_to_table("t", source=lines(), columns=["line"]) == "COPY 320"
        pieces = []

        async def keep(piece):
            await asyncio.sleep(0)  # a sink that makes the source wait
            pieces.append(piece)

        await conn.copy_from_query("SELECT line FROM t ORDER BY id", output=keep)
        assert (digest(pieces), sum(map(len, pieces))) == await digest_async(lines())

    connected(main, way)


def test_rows_of_a_cursor_come_as_they_are_asked_for(connected):
    async def main(conn):
        seen = 0
        async with conn.transaction():
            async for row in conn.cursor("SELECT generate_series(0, 19999) AS n", prefetch=500):
                assert row["n"] == seen
                seen += 1
        assert seen == 20_000

    connected(main)


def test_notices_arrive_in_order(server, connected):
    heard, all_heard = [], asyncio.Event()

    def hear(conn, pid, channel, payload):
        heard.append(int(payload))
        if len(heard) == 500:
            all_heard.set()

    async def main(conn):
        await conn.add_listener("news", hear)
        other = await asyncpg.connect(**options(server, "unix"))
        for number in range(500):
            await other.execute(f"NOTIFY news, '{number}'")
        await other.close()
        await all_heard.wait()
        assert heard == list(range(500))

    connected(main)


def test_failed_transaction_leaves_nothing_behind(connected):
    async def main(conn):
        await conn.execute("CREATE TEMP TABLE t (n int PRIMARY KEY)")
        async with conn.transaction():
            await conn.execute("INSERT INTO t VALUES (1)")
            with pytest.raises(asyncpg.UniqueViolationError):
                async with conn.transaction():
                    await conn.execute("INSERT INTO t VALUES (2), (1)")
        assert await conn.fetch("SELECT n FROM t") == [(1,)]

    connected(main)


# PostgreSQL forgets a request to cancel what it has not begun: this says when it has.
SLEEP = "DO $$ BEGIN RAISE NOTICE 'asleep'; PERFORM pg_sleep(600); END $$"


@WAYS
def test_cancelled_query_frees_the_connection(connected, way):
    async def main(conn):
        asleep = asyncio.Event()
        conn.add_log_listener(lambda conn, message: asleep.set())
        for _ in range(3):
            asleep.clear()
            query = asyncio.create_task(conn.execute(SLEEP))
            await asleep.wait()
            query.cancel()
            with pytest.raises(asyncio.CancelledError):
                await query
            assert await conn.fetchval("SELECT 1") == 1
        with pytest.raises(TimeoutError):
            await conn.execute(SLEEP, timeout=1)
        assert await conn.fetchval("SELECT 2") == 2

    connected(main, way)


def test_cancelled_copy_frees_the_connection(connected):
    async def main(conn):
        await conn.execute("CREATE TEMP TABLE t (line text)")
        begun = asyncio.Event()

        async def endless():
            while True:
                yield b"x" * 65535 + b"\n"
                begun.set()

        copy = asyncio.create_task(conn.copy_to_table("t", source=endless()))
        await begun.wait()
        copy.cancel()
        with pytest.raises(asyncio.CancelledError):
            await copy
        assert await conn.fetchval("SELECT count(*) FROM t") == 0

    connected(main)


def test_pool_outlives_connections_that_the_server_ends(server, run):
    errors = (asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError)

    async def main():
        async with asyncpg.create_pool(**options(server), min_size=5, max_size=10) as pool:
            asked = [pool.fetchval("SELECT $1::int", number) for number in range(300)]
            assert await asyncio.gather(*asked) == list(range(300))
            async with pool.acquire() as one, pool.acquire() as other:
                query = asyncio.create_task(one.execute("SELECT pg_sleep(600)"))
                await asyncio.sleep(0.01)
                await other.execute("SELECT pg_terminate_backend($1)", one.get_server_pid())
                with pytest.raises(errors, match="terminating connection due to administrator"):
                    await query
            assert await pool.fetchval("SELECT 1") == 1

    run(main())
