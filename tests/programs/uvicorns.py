"""Uvicorn in this process and in one of its own, serving tests/programs/starlette_app.py."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import httpx
import starlette_app
import trustme
import uvicorn
from command import Command

HERE = Path(__file__).resolve().parent


class Uvicorn(Command):
    """`uvicorn starlette_app:app --loop pyloop:new_event_loop`, on a free port."""

    program = ("uvicorn", "starlette_app:app", "--loop", "pyloop:new_event_loop", "--port", "0")
    says_where = r"Uvicorn running on https?://[\w.]+:(\d+)"

    def __init__(self, directory, *args, backend):
        super().__init__(directory, *args, env={"PYLOOP_BACKEND": backend, "PYTHONPATH": str(HERE)})


@contextlib.asynccontextmanager
async def serving(**options):
    """Uvicorn on the running loop; yields the URL, which means nothing if it is on a `uds`."""
    starlette_app.GO_ON, starlette_app.given = asyncio.Event(), 0
    settings = {"port": 0, "log_config": None, "access_log": False, "lifespan": "off", **options}
    server = uvicorn.Server(uvicorn.Config(starlette_app.app, loop="none", **settings))
    serve = asyncio.create_task(server.serve())
    try:
        while not server.started and not serve.done():
            await asyncio.sleep(0)
        where = server.servers[0].sockets[0].getsockname()
        scheme = "https" if "ssl_certfile" in options else "http"
        yield f"{scheme}://127.0.0.1:{where[1]}"
    finally:
        server.should_exit = True
        await serve


def certificate(directory):
    """Options of uvicorn for TLS, and the context of a client that trusts it."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem
    issued.write_to_path(directory / "server.pem")
    context = httpx.create_ssl_context()
    authority.configure_trust(context)
    return {"ssl_certfile": str(directory / "server.pem")}, context


async def ask_many(client, requests, at_a_time):
    """Send so many requests to /, some at a time; return the answers."""
    gate = asyncio.Semaphore(at_a_time)

    async def ask():
        async with gate:
            response = await client.get("/")
            response.raise_for_status()
            return response.json()

    return await asyncio.gather(*(ask() for _ in range(requests)))
