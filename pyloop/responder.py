"""A small HTTP/1.1 responder: GET and HEAD of a few fixed paths, one request a connection.

    head --parse--> Request --route--> Answer --> bytes, and the connection closes

It runs on the loop of a supervisor, so a peer must cost next to nothing: heads are limited, bodies
are not taken, every answer closes, and time-outs do the rest. A Host that is a name which nobody
gave to this server is refused: else a page elsewhere, whose name was made to lead here, could read
it all.
Source: RFC 9110, RFC 9112.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

from pyloop.connection import Connection
from pyloop.framing import Delimited

__all__ = ["FRAMING", "Answer", "Request", "responder"]

FRAMING = Delimited(b"\r\n\r\n", max_size=8192)
"""Cuts the stream into heads."""

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_START = re.compile(rf"({_TOKEN}) (\S+) HTTP/(\d)\.(\d)")
_FIELD = re.compile(rf"({_TOKEN}):([^\x00\r\n]*)")  # one way to match: time linear in its length
_HOST = re.compile(r"(?:\[([^\]]*)\]|([^:\[\]]*))(?::\d*)?")
_ALWAYS = (
    "Connection: close",
    "Cache-Control: no-store",
    "X-Content-Type-Options: nosniff",
    "Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'; script-src "
    "'unsafe-inline'; connect-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'",
)


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked. Field names are in lower case."""

    method: str
    path: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered. Of an error the body is its name."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK
    extra: tuple[str, ...] = ()


class _Refused(Exception):
    """Answered without asking a route."""

    def __init__(self, status: HTTPStatus, *extra: str) -> None:
        self.answer = Answer(
            f"{status.value} {status.phrase}\n".encode(), status=status, extra=extra
        )


def responder(
    routes: Mapping[str, Callable[[Request], Answer]], names: Collection[str] = ()
) -> Callable[[Connection, bytes], None]:
    """Return a handler for a server with FRAMING.

    Args:
        routes: what answers, by path.
        names: hosts that this server is called, beyond addresses and localhost.
    """
    allowed = {"localhost", *(name.lower() for name in names)}

    def respond(conn: Connection, head: bytes) -> None:
        method = head.lstrip(b"\r\n")[:5]
        try:
            request = _parse(head)
            _check_host(request, allowed)
            answer = _route(routes, request)
        except _Refused as exc:
            answer = exc.answer
        conn.write(_encode(answer, with_body=method != b"HEAD "))
        conn.close()

    return respond


def _parse(head: bytes) -> Request:
    start, *lines = head.decode("latin-1").lstrip("\r\n").split("\r\n")
    match = _START.fullmatch(start)
    if match is None:
        raise _Refused(HTTPStatus.BAD_REQUEST)
    method, target, major, minor = match.groups()
    if major != "1":
        raise _Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    fields: dict[str, str] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise _Refused(HTTPStatus.BAD_REQUEST)
        name, value = field[1].lower(), field[2].strip(" \t")
        if name in fields and name in ("host", "content-length"):
            raise _Refused(HTTPStatus.BAD_REQUEST)
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    if minor != "0" and "host" not in fields:
        raise _Refused(HTTPStatus.BAD_REQUEST)
    if fields.get("content-length", "0") != "0" or "transfer-encoding" in fields:
        raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    return Request(method, target.partition("?")[0], fields)


def _check_host(request: Request, allowed: Collection[str]) -> None:
    host = request.fields.get("host")
    if host is None:
        return
    match = _HOST.fullmatch(host)
    if match is None:
        raise _Refused(HTTPStatus.BAD_REQUEST)
    name = match[1] or match[2]
    try:
        ipaddress.ip_address(name)
    except ValueError:
        if name.lower() not in allowed:
            raise _Refused(HTTPStatus.MISDIRECTED_REQUEST) from None


def _route(routes: Mapping[str, Callable[[Request], Answer]], request: Request) -> Answer:
    if request.method not in ("GET", "HEAD"):
        raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, "Allow: GET, HEAD")
    if request.path not in routes:
        raise _Refused(HTTPStatus.NOT_FOUND)
    return routes[request.path](request)


def _encode(answer: Answer, with_body: bool) -> bytes:
    lines = (
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
        f"Date: {formatdate(usegmt=True)}",
        f"Content-Type: {answer.content_type}",
        f"Content-Length: {len(answer.body)}",
        *_ALWAYS,
        *answer.extra,
    )
    return "\r\n".join((*lines, "", "")).encode("latin-1") + (answer.body if with_body else b"")
