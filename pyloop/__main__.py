"""python -m pyloop: the command line. Options are read here; the work is done in other rooms."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import click

from pyloop.about import info as find_info
from pyloop.application import Application, ApplicationError
from pyloop.errors import ExtraMissingError, PyloopError
from pyloop.logs import LEVELS, log_to_stderr
from pyloop.loop import new_event_loop
from pyloop.serve import serve as serve_application
from pyloop.top import top as show_top

__all__ = ["cli"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("pyloop-io"), prog_name="pyloop", message="%(prog)s %(version)s")
def cli() -> None:
    """Network servers in Python on an event loop whose hot path is C."""


def _workers(value: str) -> int | str:
    return int(value) if value.isdecimal() else value


def _bytes(value: str) -> int:
    found = re.fullmatch(r"(\d+)([KMG]?)", value, re.IGNORECASE)
    if found is None:
        raise click.BadParameter(f"{value!r}: expected bytes, such as 500000000 or 512M")
    return int(found[1]) << 10 * " KMG".index(found[2].upper() or " ")


_LIMITS = ("worker_timeout", "max_rss", "max_lifetime", "max_messages")
_seconds = partial(click.option, type=float, metavar="SECONDS")


@cli.command()
@click.argument("target", metavar="MODULE:SERVER")
@click.option("--host", "hosts", multiple=True, metavar="HOST", help="Where to listen; repeatable.")
@click.option("--port", type=click.IntRange(0, 65535), metavar="PORT", help="0 takes a free one.")
@click.option("--path", metavar="PATH", help="Listen on a Unix socket; @name is abstract.")
@click.option(
    "--workers", type=_workers, metavar="N|auto", help="Processes that serve; auto is one per core."
)
@click.option("--backend", default="auto", show_default=True, help="What waits for sockets.")
@click.option("--reload", is_flag=True, help="Reload when a Python file in the app dir changes.")
@click.option("--factory", is_flag=True, help="SERVER is a function that returns the server.")
@click.option(
    "--app-dir",
    type=click.Path(exists=True, file_okay=False),
    default=".",
    metavar="DIR",
    show_default=True,
    help="Where MODULE is looked for first.",
)
@_seconds("--drain-timeout", help="How long stopping waits for clients.")
@_seconds("--worker-timeout", help="Replace a worker that hangs so long; 0: never.")
@click.option(
    "--max-rss",
    type=_bytes,
    metavar="BYTES[K|M|G]",
    help="Replace a worker that holds more; 0: never.",
)
@_seconds("--max-lifetime", help="Replace a worker as old as that; 0: never.")
@click.option(
    "--max-messages",
    type=int,
    metavar="N",
    help="Replace a worker after so many messages; 0: never.",
)
@click.option("--metrics", metavar="ADDRESS", help="Serve metrics over HTTP there.")
@click.option("--pid-file", default="", metavar="PATH", help="Keep the supervisor's pid there.")
@click.option(
    "--log-level",
    type=click.Choice(LEVELS),
    default="info",
    metavar="LEVEL",
    show_default=True,
    help=f"What to write to stderr, from: {', '.join(LEVELS)}.",
)
def serve(
    target: str,
    hosts: tuple[str, ...],
    workers: int | str | None,
    reload: bool,
    pid_file: str,
    log_level: str,
    **options: Any,
) -> None:
    """Serve a pyloop.Server, or a list of them, that a module makes.

    MODULE:SERVER is such as chat:server for "server" in chat.py. An option that is not given is as
    the Server says. SIGTERM or Ctrl-C stops, SIGHUP reloads the code without refusing a client.
    """
    if reload and find_spec("watchfiles") is None:
        raise click.UsageError('--reload needs watchfiles: pip install "pyloop-io[reload]"')
    limits = {name: options.pop(name) for name in _LIMITS}
    limits = {name: value or None for name, value in limits.items() if value is not None}
    if workers is not None:
        limits["workers"] = workers
    try:
        application = Application(target, hosts=hosts, limits=limits, **options)
        application.check()
        new_event_loop(options["backend"]).close()
    except (TypeError, ValueError) as exc:
        raise click.UsageError(str(exc)) from None
    log_to_stderr(log_level)
    try:
        serve_application(application, reload=reload, log_level=log_level, pid_file=pid_file)
    except ExtraMissingError as exc:
        raise click.UsageError(str(exc)) from None
    except (ApplicationError, OSError) as exc:
        raise click.ClickException(str(exc)) from None


@cli.command()
@click.argument("target")
@click.option("--plain", is_flag=True, help="Print lines instead of drawing a screen.")
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="From one look to the next.",
)
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many intervals.")
def top(target: str, plain: bool, interval: float, count: int | None) -> None:
    """Show what the processes of a running server do.

    TARGET is the pid of any of them, or what they listen on: host:port, :port, [::1]:port, a Unix
    socket's path with a slash in it, or @name.
    """
    if not plain and not sys.stdout.isatty():
        raise click.UsageError("the live screen needs a terminal: use --plain")
    try:
        show_top(target, plain=plain, interval=interval, count=count)
    except (ValueError, ExtraMissingError) as exc:
        raise click.UsageError(str(exc)) from None
    except PyloopError as exc:
        raise click.ClickException(str(exc)) from None


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print an object with the same fields.")
def info(as_json: bool) -> None:
    """Show what this pyloop was built as, and what works here: the fast path, backends, extras."""
    found = find_info()
    click.echo(json.dumps(asdict(found), indent=2) if as_json else str(found))


if __name__ == "__main__":
    cli(prog_name="python -m pyloop")
