"""The rows of HTTP: uvicorn on each loop, under wrk. Ratios are to uvloop."""

from __future__ import annotations

from row import NEEDS, Peer, Row, Target

LOOPS = ("pyloop", "uvloop", "asyncio", "rloop")


def uvicorn(loop: str, http: str) -> Peer:
    args = ("--loop", loop, "--http", http)
    return Peer(f"uvicorn on {loop}", "uvicorn_text.py", args, NEEDS.get(loop, loop))


def http_row(http: str) -> Row:
    return Row(
        f"http-{http}",
        f"uvicorn with {http}: a plain-text answer of 13 bytes, 50 connections kept alive, by wrk",
        {"connections": 50},
        tuple(uvicorn(loop, http) for loop in LOOPS),
        (Target("uvicorn on pyloop", "uvicorn on uvloop", ahead=1.0),),
        floor="uvicorn on uvloop",
        unit="us/request",
        way="wrk",
        tools=("uvicorn", "wrk"),
    )


def all_rows() -> list[Row]:
    return [http_row(http) for http in ("httptools", "h11")]
