"""The private seams of asyncio that pyloop.Loop builds on, all of them, and nothing else.

What is only imported stands here by name. What Loop overrides, the stdlib calls:

    _make_socket_transport, _make_ssl_transport     streams.py's and the servers' way to a transport
    _make_read_pipe_transport, _make_write_pipe_transport
    _start_serving, _stop_serving                   base_events.Server
    _sendfile_native                                loop.sendfile
    _make_self_pipe, _close_self_pipe, _write_to_self, _process_events

tests/test_seams.py looks for each on every version of Python that runs it.
"""

from __future__ import annotations

import inspect
from asyncio import base_events, constants, protocols, sslproto, transports
from typing import Any

__all__ = [
    "LOG_THRESHOLD_FOR_CONNLOST_WRITES",
    "FlowControlMixin",
    "SSLProtocol",
    "SendfileMode",
    "attach",
    "detach",
    "feed_buffered",
]

FlowControlMixin = transports._FlowControlMixin
"""Marks, and when the protocol is paused; has no __dict__."""

SSLProtocol: Any = sslproto.SSLProtocol
"""What it receives into: `max_size`, `_ssl_buffer`, `_ssl_buffer_view`; then buffer_updated()."""

SendfileMode: Any = constants._SendfileMode
LOG_THRESHOLD_FOR_CONNLOST_WRITES: int = constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES

feed_buffered: Any = protocols._feed_data_to_buffered_proto  # type: ignore[attr-defined]
"""(protocol, data): through get_buffer and buffer_updated, in as many steps as it takes."""

_server: Any = base_events.Server
_NAMES_TRANSPORT = len(inspect.signature(_server._attach).parameters) > 1  # from Python 3.13 on


def attach(server: Any, transport: Any) -> None:
    """Tell an asyncio.Server of one more transport."""
    if _NAMES_TRANSPORT:
        server._attach(transport)
    else:
        server._attach()


def detach(server: Any, transport: Any) -> None:
    """Tell an asyncio.Server that a transport has ended."""
    if _NAMES_TRANSPORT:
        server._detach(transport)
    else:
        server._detach()
