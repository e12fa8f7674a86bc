"""The admin endpoint: HTTP for people and for monitoring. It reads `Server.statistics` and owns no state.

Rule: nothing here serves an object, and nothing in the data plane waits for anything here.
"""

import contextlib
import errno
import hmac
import ipaddress
import os
import socket
import stat
import threading
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from .concurrency import Concurrency
from .listening import ListeningPoint
from .statistics import Statistics

if TYPE_CHECKING:
    from .server import Server

LOCAL_NAMES: Final = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})
SOCKET_PERMISSIONS: Final = 0o600
BACKLOG: Final = 128
#: Seconds that requests under way get when the endpoint ends.
GRACE: Final = 1


class Health(BaseModel):
    """The process is alive."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether new connections are accepted."""

    status: Literal["ready", "draining"]


class Admin:
    """The endpoint of one server, in a thread of its own."""

    def __init__(self, server: "Server", listen: str) -> None:
        self._listen = listen
        self._socket: socket.socket | None = None
        self._http = uvicorn.Server(
            uvicorn.Config(
                application(server, listen),
                log_config=None,
                log_level="warning",
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=GRACE,
            )
        )
        self._thread = threading.Thread(target=self._serve, name="admin", daemon=True)
        self.address = ""

    def start(self) -> None:
        """Listen and serve; raises OSError with the address where that cannot be."""
        self._socket, self.address = listen_on(self._listen)
        self._thread.start()

    def stop(self) -> None:
        """Stop serving, close the socket and remove its file."""
        if self._socket is None:
            return
        self._http.should_exit = True
        self._thread.join()
        self._socket.close()
        self._socket = None
        if self.address.startswith("unix:"):
            Path(self.address.removeprefix("unix:")).unlink(missing_ok=True)

    def _serve(self) -> None:
        assert self._socket is not None
        self._http.run(sockets=[self._socket])


class Change(BaseModel):
    """The model that each named transport is to have from now on."""

    model_config = ConfigDict(extra="forbid")

    unix: Concurrency | None = None
    tcp: Concurrency | None = None
    udp: Concurrency | None = None


def application(server: "Server", listen: str = "") -> FastAPI:
    """Return the endpoint's application for `server`, which listens on `listen`."""
    app = FastAPI(title="objmapper", description="The figures and the state of one objmapper server.")
    bound_host = "" if listen.startswith("unix:") or not listen else ListeningPoint.parse(listen, 0).host

    @app.middleware("http")
    async def refuse_foreigners(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        # A page from elsewhere can make a browser call a loopback port: across origins, or under its own name
        # (DNS rebinding).
        host = request.headers.get("host", "")
        origin = request.headers.get("origin")
        if not is_local(host, bound_host):
            return JSONResponse({"detail": f"Host {host!r} is not this server"}, HTTPStatus.FORBIDDEN)
        if origin is not None and urlsplit(origin).netloc != host:
            return JSONResponse({"detail": f"Origin {origin!r} is not this server"}, HTTPStatus.FORBIDDEN)
        return await answer(request)

    @app.get("/stats")
    async def stats() -> Statistics:
        """Figures in total, by transport, by model and by mode; times over the last minute and since start."""
        return server.statistics()

    @app.get("/healthz")
    async def healthz() -> Health:
        """Answer as long as the process lives."""
        return Health()

    @app.get("/readyz", responses={503: {"model": Readiness}})
    async def readyz(response: Response) -> Readiness:
        """Answer 200 while connections are accepted, 503 while the server drains."""
        draining = server.statistics().draining
        if draining:
            response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
        return Readiness(status="draining" if draining else "ready")

    @app.post("/concurrency", responses={401: {}, 409: {}})
    async def concurrency(change: Change, request: Request) -> Mapping[str, str]:
        """Give transports other models while they serve; answer with the model that each has then."""
        authorize(request, listen, server.config.admin_token)
        try:
            server.set_concurrency(**{name: model for name, model in change if model is not None})
        except ValueError as error:
            raise HTTPException(HTTPStatus.CONFLICT, str(error)) from None
        return server.statistics().concurrency_model

    return app


def authorize(request: Request, listen: str, token: str | None) -> None:
    """Let a write pass that comes over the Unix socket, which is its owner's alone, or that carries the token."""
    if listen.startswith("unix:"):
        return
    given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
    if token is None or not hmac.compare_digest(given, token.encode()):
        advice = "Authorization: Bearer TOKEN (OBJMAPPER_ADMIN_TOKEN), or the admin endpoint on a Unix socket"
        raise HTTPException(HTTPStatus.UNAUTHORIZED, f"a write needs {advice}", {"WWW-Authenticate": "Bearer"})


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


def listen_on(listen: str) -> tuple[socket.socket, str]:
    """Return a listening socket, and its address as a client names it; raises OSError with the address."""
    if listen.startswith("unix:"):
        return _listen_unix(listen.removeprefix("unix:")), listen
    point = ListeningPoint.parse(listen, 0).resolved()
    family = socket.AF_INET6 if ":" in point.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((point.host, point.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, "the admin endpoint cannot listen", f"http://{point}") from None
    return listener, f"http://{ListeningPoint(point.host, listener.getsockname()[1])}"


def _listen_unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        # bind(2) gives the file the permissions of the socket's own inode: no moment of others'.
        os.fchmod(listener.fileno(), SOCKET_PERMISSIONS)
        listener.bind(path)
        Path(path).chmod(SOCKET_PERMISSIONS)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        # A path that is too long has no errno.
        reason = "the admin endpoint cannot listen" if error.errno else f"the admin endpoint cannot listen ({error})"
        raise OSError(error.errno, reason, path) from None
    return listener


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on; anything else that is there is left for bind(2) to complain about."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(path) == errno.ECONNREFUSED:
                Path(path).unlink()
