"""Run the page with uvicorn."""

from __future__ import annotations

import logging
import socket
from typing import Any

import uvicorn

from videomamba_depth.serving.settings import ServeSettings
from videomamba_depth.utils.errors import UserError

log = logging.getLogger(__name__)

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
    except OSError as error:
        raise UserError(
            f"cannot listen at {host}:{port}: {error.strerror or error}; give another host= or port="
        ) from None


def run_server(app: Any, listener: socket.socket, settings: ServeSettings) -> None:
    """Serve until Ctrl-C or SIGTERM; connections then have three seconds to finish."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        ws_max_size=2 * settings.max_picture_bytes,
        ws_max_queue=2,
        limit_concurrency=_CONNECTIONS_PER_STREAM * (settings.max_streams + 1),
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )
    uvicorn.Server(config).run(sockets=[listener])
