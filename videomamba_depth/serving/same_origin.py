"""Keep other web pages out: a browser sends requests to this machine for any page that it shows."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

_POLICY = "default-src 'self'; img-src 'self' blob: data:; frame-ancestors "
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_AUTHORITY = re.compile(r"(?:\[([0-9a-f.]*:[0-9a-f:.]+)\]|([a-z0-9_.-]+))(?::([0-9]{0,5}))?", re.ASCII)
_ORIGIN = re.compile(r"(https?)://([^/?#@]+)", re.ASCII)
_PORTS = {"http": 80, "https": 443}


def is_loopback(host: str) -> bool:
    """Tell whether `host` is `localhost` or an IP address that can be reached from this machine alone."""
    address = _address(host)
    return host.lower() == "localhost" if address is None else address.is_loopback


class SameOrigin:
    """ASGI middleware: 400 or 403 for requests that are not the page's own, and headers that hold it to its own files.

    A name of somebody else's may lead to this machine (DNS rebinding) and so make a foreign page one of the same
    origin. An IP address cannot be rebound; a name is served only if it is `localhost` or listed.

    Args:
        loopback: of IP addresses, serve those of the loopback alone.
        allowed_hosts: further names, without port.
        framed_by: origins, such as "https://huggingface.co", of pages that may show this one in a frame.
    """

    def __init__(
        self, app: Any, loopback: bool, allowed_hosts: Iterable[str] = (), framed_by: Iterable[str] = ()
    ) -> None:
        self._app, self._loopback = app, loopback
        self._allowed = frozenset(host.lower() for host in allowed_hosts)
        self._headers = {**_HEADERS, "Content-Security-Policy": _POLICY + (" ".join(framed_by) or "'none'")}

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Serve one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope["path"], Headers(scope=scope))
        if refusal is None:
            await self._app(scope, receive, _with_headers(send, self._headers))
        elif scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
            status, text = refusal
            await JSONResponse({"error": text}, status)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _refusal(self, path: str, headers: Headers) -> tuple[int, str] | None:
        """Return the HTTP status and a line for requests that are not served."""
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        own = _authority(hosts[0], "http") if len(hosts) == 1 else None
        if own is None:
            return 400, "a request needs one Host header with a host name or an IP address"
        if not path.startswith("/"):
            return 400, "the target of a request must be a path"
        if not self._is_served(own[0]):
            return 403, f"the page is not served under the name '{own[0]}'; its owner may add it to allowed_hosts"
        if origins and not (len(origins) == 1 and self._is_same(origins[0], hosts[0])):
            return 403, "requests of other pages are refused"
        return None

    def _is_served(self, host: str) -> bool:
        address = _address(host)
        own = is_loopback(host) if self._loopback or address is None else True
        return own or host in self._allowed

    def _is_same(self, origin: str, host: str) -> bool:
        parts = _ORIGIN.fullmatch(origin.lower())
        return parts is not None and _authority(parts[2], parts[1]) == _authority(host, parts[1])


def _authority(text: str, scheme: str) -> tuple[str, int] | None:
    """Return host (in lower case, without brackets) and port of `host[:port]`; None if it is malformed."""
    parts = _AUTHORITY.fullmatch(text.lower())
    if parts is None or (parts[1] is not None and _address(parts[1]) is None):
        return None
    port = int(parts[3] or _PORTS[scheme])
    return (parts[1] or parts[2], port) if port < 65536 else None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that `host` spells in full; None for names and for forms such as 127.1 or 017.0.0.1."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)  # ::ffff:127.0.0.1
    return address if mapped is None else mapped


def _with_headers(send: Any, headers: Mapping[str, str]) -> Any:
    async def send_more(event: MutableMapping[str, Any]) -> None:
        if event["type"] == "http.response.start":
            MutableHeaders(scope=event).update(headers)
        await send(event)

    return send_more
