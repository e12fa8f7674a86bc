"""Access control of the admin endpoint: allowed host names and origins, and authorization of writes.

A browser lets any page call a loopback port. Three headers detect such calls: Host (DNS rebinding: a foreign name that
resolves to this address), Origin, and Sec-Fetch-Site (https://www.w3.org/TR/fetch-metadata/).
"""

import hmac
import ipaddress
import os
import re
from collections.abc import Callable, Collection
from http import HTTPStatus
from typing import Any, Final

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL_NAMES: Final = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})
READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
#: Writes that clients on this machine may send without the token: they only record requests for five seconds.
LOCAL_WRITES: Final = frozenset({"/watch"})
#: Pages that may be opened by a link on another site: the browser shows them, but the other site cannot read them.
PAGES: Final = frozenset({"/", "/docs"})
#: Values of Sec-Fetch-Site for requests that no other site made. Programs other than browsers do not send it.
OWN_SITES: Final = frozenset({"same-origin", "none"})
#: The value of `admin_host` that allows any name.
ANY_HOST: Final = "*"
#: uri-host and port (RFC 9110, 7.2): no user, no path.
HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{0,5}))?")
#: Maximum bytes of a request's content; valid requests have about a hundred.
MAX_CONTENT: Final = 64 << 10
#: Headers of all answers that do not set their own.
HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
ADVICE: Final = "Authorization: Bearer TOKEN (OBJMAPPER_ADMIN_TOKEN), or the admin endpoint's Unix socket"


class AccessControl:
    """ASGI middleware that checks all requests. All methods except reads need authorization.

    `names`: host names of this server besides its addresses; `ANY_HOST` allows all.
    """

    def __init__(
        self,
        app: ASGIApp,
        bound_host: str | None,
        token: Callable[[], str | None],
        names: Callable[[], Collection[str]],
    ) -> None:
        self._app = app
        self._bound_host = bound_host
        self._token = token
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reject a request, or pass it to the application."""

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
        host = headers.get("host", "")
        if not is_local(host, self._bound_host, self._names()):
            return _problem(HTTPStatus.FORBIDDEN, f"Host: unknown name (got {host!r}); add it to admin_host")
        if not all(_is_origin_of(origin, host) for origin in headers.getlist("origin")):
            return _problem(HTTPStatus.FORBIDDEN, f"Origin: not this server (got {headers['origin']!r})")
        if not all(site in OWN_SITES for site in headers.getlist("sec-fetch-site")) and not _is_link(scope, headers):
            return _problem(HTTPStatus.FORBIDDEN, f"Sec-Fetch-Site: not this site (got {headers['sec-fetch-site']!r})")
        if scope["method"] not in READS and not self._may_write(scope, headers):
            return _problem(
                HTTPStatus.UNAUTHORIZED,
                f"a write requires {ADVICE}",
                {"WWW-Authenticate": "Bearer"},
            )
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > MAX_CONTENT:
            return _problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the content has more than {MAX_CONTENT} bytes")
        return None

    def _may_write(self, scope: Scope, headers: Headers) -> bool:
        # Root can read the token anyway.
        if scope.get("state", {}).get("peer_uid") in (os.geteuid(), 0):
            return True
        if scope["path"] in LOCAL_WRITES and _is_on_this_machine(scope):
            return True
        token = self._token()
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        # Starlette decodes headers as Latin-1, which keeps all bytes; a token is UTF-8.
        return (
            token is not None
            and scheme.lower() == "bearer"
            and hmac.compare_digest(credentials.strip().encode("latin-1"), token.encode())
        )


def _is_origin_of(origin: str, host: str) -> bool:
    scheme, separator, rest = origin.partition("://")
    return bool(separator) and scheme in {"http", "https"} and rest.lower() == host.lower()


def _is_link(scope: Scope, headers: Headers) -> bool:
    """Return whether a browser opens one of the pages by a link, in its own tab."""
    kind = headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")
    return scope["method"] == "GET" and scope["path"] in PAGES and kind == ("navigate", "document")


def _is_on_this_machine(scope: Scope) -> bool:
    # A client on a Unix socket has no address.
    client = scope.get("client")
    return not client or not client[0] or _is_loopback(client[0])


def _problem(status: HTTPStatus, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, headers)


def _bounded(receive: Receive) -> Receive:
    received = 0

    async def receive_bounded() -> Any:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_CONTENT:
            raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the content has more than {MAX_CONTENT} bytes")
        return message

    return receive_bounded


def is_local(host: str, bound_host: str | None, names: Collection[str] = ()) -> bool:
    """Return whether a Host header is this server's: one of `names`, or a local name or address.

    `bound_host`: the host that the endpoint listens on; "" for all addresses, None for a Unix socket.
    """
    found = HOST.fullmatch(host)
    if found is None or int(found[2] or 0) > 65535:
        return False
    name = found[1].strip("[]").lower().removesuffix(".")
    if name in LOCAL_NAMES or name in names or ANY_HOST in names or (bound_host and name == bound_host.lower()):
        return True
    try:
        number = ipaddress.ip_address(name)
    except ValueError:
        return False
    # An attacker's DNS name can resolve to any address, but a numeric Host cannot be rebound.
    # An endpoint on loopback is reached by loopback addresses only.
    listens_elsewhere = bound_host is not None and bound_host not in LOCAL_NAMES and not _is_loopback(bound_host)
    return number.is_loopback or listens_elsewhere


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
