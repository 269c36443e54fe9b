"""A metrics server and those who ask it."""

from __future__ import annotations

import asyncio
import contextlib
import re

from pages import page_of
from prometheus_client.parser import text_string_to_metric_families as parse_text

from pyloop.metrics import MetricsServer

HOST = b"Host: 127.0.0.1\r\n"


@contextlib.asynccontextmanager
async def serving(address=0, **options):
    """A MetricsServer with a page, which is its attribute `page`."""
    with page_of(**options) as page:
        server = MetricsServer(address, page)
        server.page = page
        await server.start()
        try:
            yield server
        finally:
            await server.stop()


def port_of(server):
    return int(re.search(r":(\d+)/$", server.url)[1])


async def talk(server, data, eof=False):
    """Send bytes; return all that comes until the end of the stream."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
    try:
        writer.write(data)
        if eof:
            writer.write_eof()
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def ask(server, target="/", *fields, method="GET"):
    """Return the status, the fields (in lower case) and the body of the one answer."""
    lines = [f"{method} {target} HTTP/1.1", "Host: 127.0.0.1", *fields, "", ""]
    return split(await talk(server, "\r\n".join(lines).encode()))


def split(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    start, *fields = head.decode().split("\r\n")
    assert start.startswith("HTTP/1.1 ")
    named = {name.lower(): value for name, _, value in (f.partition(": ") for f in fields)}
    return int(start.split()[1]), named, body


def values(text, parse=parse_text):
    """Return each sample's value by its name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def one(name, **labels):
    return name, tuple(sorted(labels.items()))
