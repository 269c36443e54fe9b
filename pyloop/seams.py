"""The private seams of asyncio that pyloop.Loop builds on, all of them, and nothing else.

What is only imported stands here by name. What Loop overrides, the stdlib calls:

    _make_socket_transport, _make_ssl_transport     streams, and what start_tls does not make
    _make_read_pipe_transport, _make_write_pipe_transport
    _make_datagram_transport
    _make_subprocess_transport, _child_watcher_callback     processes, on Python 3.11
    _start_serving, _stop_serving                   base_events.Server
    _sendfile_native                                loop.sendfile
    _add_reader, _add_writer, _remove_reader, _remove_writer, _ensure_fd_no_transport
    _run_once                                       run_forever; see running.py
    _make_self_pipe, _close_self_pipe, _write_to_self, _process_events

What it reads and writes of the loop: _ready, _scheduled, _timer_cancelled_count, _stopping,
_closed, _debug, _task_factory, _current_handle, _thread_id, _signal_handlers, _transports. What it
calls there: _check_closed, _check_thread, _check_callback, _add_callback, _ensure_resolved,
_handle_signal.
Handles are made by filling in their slots (handles.py). An SSLProtocol gets another buffer and is
told by _wakeup_waiter that there will be no handshake. What it does for every message is overridden
(tls_protocol.py, csrc/fastpath/tls.c): _do_read, _do_read__copied, _write_appdata, _do_write,
_process_outgoing; and the write of its transport, which _get_app_transport makes one of ours. Both
change their class for that, once made, by start_tls() too: so ours add no fields.

tests/test_seams.py looks for each on every version of Python that runs it.
"""

from __future__ import annotations

import inspect
from asyncio import base_events, constants, protocols, sslproto, transports
from typing import Any

__all__ = [
    "LOG_THRESHOLD_FOR_CONNLOST_WRITES",
    "SSL_AGAIN",
    "SSL_READS",
    "SSL_WRAPPED",
    "FlowControlMixin",
    "SSLProtocol",
    "SSLTransport",
    "SendfileMode",
    "attach",
    "detach",
    "feed_buffered",
]

FlowControlMixin = transports._FlowControlMixin
"""Marks, and when the protocol is paused; has no __dict__."""

SSLProtocol: Any = sslproto.SSLProtocol
"""What it receives into: `max_size`, `_ssl_buffer`, `_ssl_buffer_view`; then buffer_updated()."""

SSLTransport: Any = sslproto._SSLProtocolTransport
"""What an SSLProtocol gives to the protocol over it."""

SSL_WRAPPED: Any = sslproto.SSLProtocolState.WRAPPED
SSL_READS: Any = (SSL_WRAPPED, sslproto.SSLProtocolState.FLUSHING)  # its states in which it reads
SSL_AGAIN: Any = sslproto.SSLAgainErrors

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
