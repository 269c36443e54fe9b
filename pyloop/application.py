"""What `serve` serves: servers that a module makes, named module:attribute on the command line.

    Application --load()--> servers            in a worker, and in the interpreter that describes
    servers --describe()--> Description        what the supervisor needs to know of them
    Description <--> JSON                      over a pipe: the supervisor imports nothing

What the command line says goes before what the module says.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import reduce
from types import TracebackType
from typing import Any

from pyloop.address import parse_address
from pyloop.errors import PyloopError
from pyloop.listening import Place
from pyloop.options import check_path, check_seconds
from pyloop.run import refuse_run
from pyloop.server import Server
from pyloop.serving import children_of
from pyloop.supervision import Supervision, check_supervision, common_supervision

__all__ = ["Application", "ApplicationError", "Description", "describe", "told"]

_TEXT_CHARS = 32 * 1024
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


class ApplicationError(PyloopError):
    """It cannot be loaded, and why, for people: a line, and a traceback if a module raised."""


@dataclass(frozen=True)
class Application:
    """Which servers to serve, and how.

    Attributes:
        target: module:attribute, of which the attribute may have dots.
        app_dir: where modules are looked for first.
        factory: is the attribute called, without arguments, to make the servers?
        backend: of the workers' loops.
        hosts, port, path: what replaces the module's, if anything.
        limits: arguments of check_supervision that replace the module's; None is no limit.
        drain_timeout: seconds; None leaves it to the module.
        metrics: where to serve the counters over HTTP; None leaves it to the module.
    """

    target: str
    app_dir: str = "."
    factory: bool = False
    backend: str = "auto"
    hosts: Sequence[str] = ()
    port: int | None = None
    path: str | None = None
    limits: Mapping[str, Any] = field(default_factory=dict)
    drain_timeout: float | None = None
    metrics: str | None = None

    def check(self) -> None:
        """Look at what can be seen without the module.

        Raises:
            TypeError, ValueError: naming what was passed and what is expected.
        """
        module, _, attribute = self.target.partition(":")
        if not all(name.isidentifier() for name in (module + "." + attribute).split(".")):
            raise ValueError(
                f"{self.target!r}: expected module:attribute, such as chat:server for the "
                '"server" of chat.py'
            )
        if self.path is not None:
            check_path(self.path)
            if self._has_tcp:
                raise ValueError("path, and host or port: expected one of them, got both")
        self._limit(check_supervision(1, None, None, None, None))
        check_seconds("drain_timeout", self.drain_timeout or 0, none=False)
        if self.metrics is not None:
            parse_address("metrics", self.metrics)

    @property
    def _has_tcp(self) -> bool:
        return bool(self.hosts) or self.port is not None

    # ---- in an interpreter that may import the module ----

    def load(self) -> tuple[Server, ...]:
        """Import the module, and return its servers with what the command line says.

        Raises:
            ApplicationError: there is no such module, it raises, or has no servers there.
        """
        found = self._find()
        servers = tuple(found) if isinstance(found, (list, tuple)) else (found,)
        for server in servers:
            if not isinstance(server, Server):
                raise self._error(f"expected a pyloop.Server, or a list of them, got {found!r}")
            if server._place.sock is not None:
                raise self._error(
                    "a Server with sock= cannot be served by workers that start afresh: "
                    "give it host and port, or path"
                )
        if not servers:
            raise self._error("expected at least one pyloop.Server, got none")
        if len(set(servers)) != len(servers):
            raise self._error("the same Server is there twice")
        self._override(servers)
        return servers

    def _find(self) -> Any:
        try:
            with refuse_run():
                found = self._attribute()
                if self.factory:
                    found = found()
        except ApplicationError:
            raise
        except SystemExit as exc:
            how = f"its code ended the interpreter, status {exc.code!r}"
            raise self._error(f"{how}\n{told(exc)}") from None
        except BaseException as exc:
            raise self._error(f"its code raised an exception\n{told(exc)}") from None
        if callable(found) and not isinstance(found, Server):
            hint = "" if self.factory else " (a function that makes one: --factory)"
            raise self._error(f"expected a pyloop.Server, got {found!r}{hint}")
        return found

    def _attribute(self) -> Any:
        name, _, attribute = self.target.partition(":")
        module = self._import(name)
        try:
            return reduce(getattr, attribute.split("."), module)
        except AttributeError as exc:
            if exc.__traceback__ and exc.__traceback__.tb_next:  # raised by code of the module's
                raise
            where = getattr(module, "__file__", None) or name
            raise self._error(f"there is no {attribute!r} in {where}") from None

    def _import(self, name: str) -> Any:
        directory = os.path.abspath(self.app_dir)
        if directory not in map(os.path.abspath, sys.path[:1]):
            sys.path.insert(0, directory)
        try:
            __import__(name)  # the statement's function: no frames of importlib in a traceback
        except ModuleNotFoundError as exc:
            if exc.name and f"{name}.".startswith(f"{exc.name}."):
                raise self._error(f"there is no module {exc.name!r} in {directory}") from None
            raise
        return sys.modules[name]

    def _error(self, what: str) -> ApplicationError:
        return ApplicationError(f"cannot serve {self.target}: {what}")

    # ---- overrides ----

    def _limit(self, settings: Supervision) -> Supervision:
        given = {name: value or None for name, value in asdict(settings).items()}
        return check_supervision(**given | dict(self.limits))

    def _override(self, servers: tuple[Server, ...]) -> None:
        if len(servers) > 1 and (self._has_tcp or self.path is not None):
            raise self._error(f"an address was given, but there are {len(servers)} servers")
        if self.metrics is not None:
            for server in servers:
                server._metrics = None  # what they count is served once
            servers[0]._metrics = parse_address("metrics", self.metrics)
        for server in servers:
            server._place = self._move(server._place)
            server._supervision = self._limit(server._supervision)
            if self.drain_timeout is not None:
                server._drain_timeout = self.drain_timeout

    def _move(self, place: Place) -> Place:
        if self.path is not None:
            return replace(place, path=check_path(self.path))
        if not self._has_tcp:
            return place
        port = place.port if self.port is None else self.port
        return replace(place, path=None, hosts=tuple(self.hosts or place.hosts), port=port)


def told(exc: BaseException) -> str:
    """Return the traceback of what a user's code raised, without the frames that called it."""
    tb: TracebackType | None = exc.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        tb = tb.tb_next
    lines = traceback.format_exception(type(exc), exc, tb)
    return "".join(lines)[-_TEXT_CHARS:].rstrip()


# ---- for the supervisor ----


@dataclass(frozen=True)
class Description:
    """What a supervisor needs to know of the servers."""

    places: tuple[Place, ...]
    settings: Supervision
    drain_timeout: float
    children: int
    """How many a server of model="fork" may have at once; else 0."""
    metrics: tuple[Any, ...]
    """Where to serve the counters over HTTP."""
    buses: tuple[str | None, ...]
    """URLs, or None, of each server."""
    unheard: tuple[str, ...]
    """Hooks that would run in the supervisor, which has no code of the module's."""

    def to_json(self) -> dict[str, Any]:
        """Return what from_json takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Description:
        """Return what to_json was called on."""
        places = (Place(**place | {"hosts": tuple(place["hosts"])}) for place in fields["places"])
        return cls(
            places=tuple(places),
            settings=Supervision(**fields["settings"]),
            drain_timeout=fields["drain_timeout"],
            children=fields["children"],
            metrics=tuple(
                tuple(where) if isinstance(where, list) else where for where in fields["metrics"]
            ),
            buses=tuple(fields["buses"]),
            unheard=tuple(fields["unheard"]),
        )


def describe(application: Application) -> Description:
    """Load the servers and describe them.

    Raises:
        ApplicationError: they cannot be loaded, or not be served together.
    """
    servers = application.load()
    try:
        settings = common_supervision([(repr(server), server._supervision) for server in servers])
    except ValueError as exc:
        raise application._error(str(exc)) from None
    for model in {server._model for server in servers} - {"loop"}:
        if len(servers) > 1:
            raise application._error(f'model="{model}" runs alone, got {len(servers)} servers')
        if model == "fork" and settings.workers != 1:
            raise application._error(
                f'workers: model="fork" is served by 1, got {settings.workers}'
            )
    hooks = ("on_worker_start", "on_worker_stop")
    return Description(
        places=tuple(server._place for server in servers),
        settings=settings,
        drain_timeout=max(server._drain_timeout for server in servers),
        children=children_of(servers),
        metrics=tuple(server._metrics for server in servers if server._metrics is not None),
        buses=tuple(server._bus_url for server in servers),
        unheard=tuple(h for h in hooks if any(getattr(server, f"_{h}") for server in servers)),
    )
