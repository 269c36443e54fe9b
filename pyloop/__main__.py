"""python -m pyloop: the command line. Options are read here; the work is done in other rooms."""

from __future__ import annotations

import sys
from importlib.metadata import version

import click

from pyloop.errors import ExtraMissingError, PyloopError
from pyloop.top import top as show_top


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("pyloop-io"), prog_name="pyloop", message="%(prog)s %(version)s")
def main() -> None:
    """Network servers in Python on an event loop whose hot path is C."""


@main.command()
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


if __name__ == "__main__":
    main(prog_name="python -m pyloop")
