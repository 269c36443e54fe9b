"""Pipes and character devices on the asyncio face: their transports, and Loop's way to them."""

from __future__ import annotations

import io
import os
import stat
from typing import Any, TypeVar

from pyloop.core import lib
from pyloop.transports import CoreTransport

T = TypeVar("T", bound=CoreTransport)

__all__ = ["Pipes", "ReadPipeTransport", "WritePipeTransport"]


def _mode(pipe: Any) -> int:
    return os.fstat(pipe.fileno()).st_mode


def _check_pipe(pipe: Any) -> None:
    mode = _mode(pipe)
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)):
        raise ValueError(
            "Pipe transport is only for pipes, sockets and character devices, "
            f"got {pipe!r}, a file of mode {stat.filemode(mode)}"
        )


class _PipeTransport(CoreTransport):
    """One end of a pipe. The file object owns the fd; get_extra_info("pipe") gives it."""

    def __init__(self, loop: Any, pipe: Any, protocol: Any, extra: dict[str, Any] | None) -> None:
        super().__init__(loop, pipe, protocol, {**(extra or {}), "pipe": pipe})


class ReadPipeTransport(_PipeTransport):
    """The end of a pipe from which the protocol hears."""

    _flags = lib.PL_PIPE

    def write(self, data: Any) -> None:
        """Refuse: nothing can be written here."""
        raise io.UnsupportedOperation("write: this is the end of a pipe that is read")

    def write_eof(self) -> None:
        """Refuse, as write does."""
        raise io.UnsupportedOperation("write_eof: this is the end of a pipe that is read")


class WritePipeTransport(_PipeTransport):
    """The end of a pipe to which the protocol writes; lost when nobody reads any more."""

    _flags = lib.PL_PIPE | lib.PL_WRITE_ONLY

    def __init__(self, loop: Any, pipe: Any, protocol: Any, extra: dict[str, Any] | None) -> None:
        super().__init__(loop, pipe, protocol, extra)
        if stat.S_ISCHR(_mode(pipe)):
            self.pause_reading()  # what is readable there is somebody's input

    def write_eof(self) -> None:
        """Close once what is queued has been written."""
        self.close()


class Pipes:
    """The part of Loop that makes transports of pipes."""

    def _make_read_pipe_transport(
        self, pipe: Any, protocol: Any, waiter: Any = None, extra: dict[str, Any] | None = None
    ) -> ReadPipeTransport:
        _check_pipe(pipe)
        return self._begun(ReadPipeTransport(self, pipe, protocol, extra), waiter)

    def _make_write_pipe_transport(
        self, pipe: Any, protocol: Any, waiter: Any = None, extra: dict[str, Any] | None = None
    ) -> WritePipeTransport:
        _check_pipe(pipe)
        return self._begun(WritePipeTransport(self, pipe, protocol, extra), waiter)

    def _begun(self, transport: T, waiter: Any) -> T:
        self.call_soon(transport._begin, waiter, context=transport._context)  # type: ignore[attr-defined]
        return transport
