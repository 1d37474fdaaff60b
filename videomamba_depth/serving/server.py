"""Run the page with uvicorn."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from h11 import LocalProtocolError
from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol

from videomamba_depth.serving.settings import ServeSettings
from videomamba_depth.utils.errors import UserError
from videomamba_depth.utils.signals import on_stop

_CONNECTIONS_PER_STREAM = 8  # a page opens a few for its files
_SHUTDOWN_S = 3


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one.

    Raises:
        UserError: the address is taken, or not one of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen at {host}:{port}: {reason}; give another host= or port=") from None


def run_server(app: Any, listener: socket.socket, settings: ServeSettings) -> None:
    """Serve until Ctrl-C, SIGTERM or SIGHUP; connections then have three seconds to finish.

    Raises:
        KeyboardInterrupt: one of these signals came (within `on_stop`, for those other than Ctrl-C).
    """
    PageServer(server_config(app, settings)).run(sockets=[listener])


def server_config(app: Any, settings: ServeSettings) -> uvicorn.Config:
    """Return uvicorn's configuration for the page."""
    logging.getLogger("uvicorn.error").addFilter(_is_worth_telling)
    return uvicorn.Config(
        app,
        http=_with_limits(AutoHTTPProtocol, settings.idle_s),
        ws=_with_limits(AutoWebSocketsProtocol, settings.idle_s),
        log_level="warning",
        access_log=False,
        ws_max_size=2 * settings.max_picture_bytes,
        ws_max_queue=2,
        limit_concurrency=_CONNECTIONS_PER_STREAM * (settings.max_streams + 1),
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )


class PageServer(uvicorn.Server):
    """Stops at SIGHUP too, and cuts the connections that are still open when their time is over."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        cut = asyncio.get_running_loop().call_later(_SHUTDOWN_S - 1, self._cut_connections)
        await super().shutdown(sockets)
        cut.cancel()
        self._cut_connections()
        if self.server_state.tasks:  # their client has gone: they end by themselves
            await asyncio.wait(list(self.server_state.tasks), timeout=_SHUTDOWN_S)

    def _cut_connections(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals(), on_stop(self.handle_exit):
            yield


def _with_limits(protocol: Any, idle_s: float) -> Any:
    """Return uvicorn's `protocol` with time limits for clients that neither send a request nor read what they get."""
    return type(protocol.__name__, (_Limits, protocol), {"idle_s": idle_s})


class _Limits:
    """Mixin for uvicorn's protocols: cuts a connection on which nothing goes on.

    What is left of a request then ends as it does when the client goes.
    """

    idle_s: float
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    _stuck: asyncio.TimerHandle | None = None
    _idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)  # type: ignore[misc]
        self._check_again(None)

    def connection_lost(self, error: Exception | None) -> None:
        for timer in (self._stuck, self._idle):
            if timer is not None:
                timer.cancel()
        super().connection_lost(error)  # type: ignore[misc]

    def send_400_response(self, msg: str) -> None:
        """The client breaks HTTP: what it was to get for the request at hand is not sent any more."""
        cycle = getattr(self, "cycle", None)
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()
        try:
            super().send_400_response(msg)  # type: ignore[misc]
        except LocalProtocolError:  # a response has begun
            self.transport.abort()

    def pause_writing(self) -> None:
        """The client does not keep up; a transport that has more to send than it may keep says so once."""
        self._stuck = self.loop.call_later(self.idle_s, self.transport.abort)
        super().pause_writing()  # type: ignore[misc]

    def resume_writing(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
        super().resume_writing()  # type: ignore[misc]

    def _check_again(self, before: object) -> None:
        self._idle = self.loop.call_later(self.idle_s, self._check, before)

    def _check(self, before: object) -> None:
        """Cut the connection if it stood the same, with nothing to wait for, at the check before."""
        if self.transport.get_protocol() is not self:  # a WebSocket by now
            return
        cycle = getattr(self, "cycle", None)  # of uvicorn's HTTP protocols: the request at hand
        waiting = getattr(cycle, "response_complete", not hasattr(self, "handshake_complete"))
        now = (cycle, self.transport.is_closing())
        if (waiting or self.transport.is_closing()) and now == before:
            self.transport.abort()
        else:
            self._check_again(now)


def _is_worth_telling(record: logging.LogRecord) -> bool:
    """Filter uvicorn's log: no traceback for text that is no UTF-8, nothing of what a stop or a refusal ends."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, UnicodeDecodeError):
        record.exc_info = None
    refused = record.getMessage() == "ASGI callable returned without completing handshake."  # but with a response
    return not (refused or isinstance(error, asyncio.CancelledError))
