"""Who gets past the admin endpoint's door: its own names only, writes with the token or from the same user."""

import hmac
import ipaddress
import os
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL_NAMES: Final = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})
READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
#: Bytes of a request's content; the longest that makes sense here has a hundred.
CONTENT: Final = 64 << 10
#: For every answer that does not bring its own.
HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
ADVICE: Final = "Authorization: Bearer TOKEN (OBJMAPPER_ADMIN_TOKEN), or the admin endpoint's Unix socket"


class Gate:
    """Stands before the application. Every method that is no read is a write: no route has to remember it."""

    def __init__(self, app: ASGIApp, bound_host: str, token: Callable[[], str | None]) -> None:
        self._app = app
        self._bound_host = bound_host
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or hand on."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = self._refusal(scope, Headers(scope=scope))
        if answer is None:
            await self._app(scope, _bounded(receive), send_with_headers)
        else:
            await answer(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        # A page from elsewhere can make a browser call a loopback port: across origins, or under its own name
        # (DNS rebinding).
        host, origin = headers.get("host", ""), headers.get("origin")
        if not is_local(host, self._bound_host):
            return _problem(HTTPStatus.FORBIDDEN, f"Host {host!r} is not this server")
        if origin is not None and urlsplit(origin).netloc != host:
            return _problem(HTTPStatus.FORBIDDEN, f"Origin {origin!r} is not this server")
        if scope["method"] not in READS and not self._may_write(scope, headers):
            return _problem(HTTPStatus.UNAUTHORIZED, f"a write needs {ADVICE}", {"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > CONTENT:
            return _problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"no more than {CONTENT} bytes are read")
        return None

    def _may_write(self, scope: Scope, headers: Headers) -> bool:
        # Root could read the token, and everything else.
        if scope.get("state", {}).get("peer_uid") in (os.geteuid(), 0):
            return True
        token = self._token()
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return token is not None and scheme.lower() == "bearer" and hmac.compare_digest(given.encode(), token.encode())


def _problem(status: HTTPStatus, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, headers)


def _bounded(receive: Receive) -> Receive:
    taken = 0

    async def receive_bounded() -> Any:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > CONTENT:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"no more than {CONTENT} bytes are read")
        return message

    return receive_bounded


def is_local(host: str, bound_host: str) -> bool:
    """Return whether a Host header names this server: a number or a name of this machine, not a name from elsewhere."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name in LOCAL_NAMES or (bound_host and name == bound_host.lower()):
        return True
    try:
        number = ipaddress.ip_address(name)
    except ValueError:
        return False
    # Numbers cannot be rebound. On loopback only loopback numbers lead here.
    return number.is_loopback or bool(bound_host and bound_host not in LOCAL_NAMES and not _is_loopback(bound_host))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
