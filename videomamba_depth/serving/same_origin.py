"""Keep other web pages out: a browser sends requests to this machine for any page that it shows."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Tell whether `host` can be reached from this machine alone."""
    return host in _LOOPBACK or host.startswith("127.")


class SameOrigin:
    """ASGI middleware: 403 for requests that another page makes, and headers that hold the page to its own files.

    Args:
        loopback: only requests for a loopback name are served, so that no name of somebody else's that leads to this
            machine (DNS rebinding) makes a foreign page one of the same origin.
    """

    def __init__(self, app: Any, loopback: bool) -> None:
        self._app, self._loopback = app, loopback

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Serve one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
        elif self._is_ours(Headers(scope=scope)):
            await self._app(scope, receive, _with_headers(send))
        elif scope["type"] == "http":
            await JSONResponse({"error": "requests of other pages are refused"}, 403)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _is_ours(self, headers: Headers) -> bool:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._loopback and not is_loopback(urlsplit(f"//{host}").hostname or ""):
            return False
        return origin is None or urlsplit(origin).netloc == host


def _with_headers(send: Any) -> Any:
    async def send_more(event: MutableMapping[str, Any]) -> None:
        if event["type"] == "http.response.start":
            MutableHeaders(scope=event).update(_HEADERS)
        await send(event)

    return send_more
