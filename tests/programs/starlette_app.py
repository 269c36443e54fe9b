"""A Starlette application that says what it runs on, and takes and gives large bodies.

It is served in the test's own process, and by `uvicorn` in another.
"""

from __future__ import annotations

import asyncio

from bodies import blocks_async, digest_async
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

GO_ON = asyncio.Event()
"""/held reads nothing before it is set."""

given = 0
"""How many bytes /blocks has handed over."""


async def where(request):
    loop = asyncio.get_running_loop()
    kind = f"{type(loop).__module__}.{type(loop).__name__}"
    return JSONResponse({"loop": kind, "backend": loop.backend, "peer": request.client})


async def upload(request):
    sha, size = await digest_async(request.stream())
    return JSONResponse({"sha": sha, "size": size})


async def held(request):
    await GO_ON.wait()
    return await upload(request)


async def blocks(request):
    size = request.path_params["size"]

    async def counted():
        global given
        async for block in blocks_async(size):
            yield block
            given += len(block)

    return StreamingResponse(counted(), headers={"content-length": str(size)})


async def slow(request):
    """Begin an answer, and end it once the other side has had time to ask for the end."""

    async def parts():
        yield b"begun, "
        await asyncio.sleep(0.3)
        yield b"done"

    return StreamingResponse(parts())


async def echo(websocket):
    await websocket.accept()
    async for message in websocket.iter_bytes():
        await websocket.send_bytes(message)


app = Starlette(
    routes=[
        Route("/", where),
        Route("/upload", upload, methods=["POST"]),
        Route("/held", held, methods=["POST"]),
        Route("/blocks/{size:int}", blocks),
        Route("/slow", slow),
        WebSocketRoute("/echo", echo),
    ]
)
