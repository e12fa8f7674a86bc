"""The life of the admin endpoint: HTTP for people and for monitoring, in a thread of its own.

Rule: nothing here serves an object, and nothing in the data plane waits for anything here.
"""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from .endpoint.http_limits import BACKLOG, HEADERS, IDLE_TIME, LimitedHttp
from .endpoint.routes import application
from .settings.listening import ListeningPoint
from .threads import start_thread

if TYPE_CHECKING:
    from .server import Server

LOG: Final = logging.getLogger(__name__)
SOCKET_PERMISSIONS: Final = 0o600
#: How much it stands back behind the data plane's threads (setpriority(2), from 0 to 19).
NICE: Final = 10
#: Seconds until the end does not wait any more; its connections have less (`http_limits.GRACE`).
GRACE: Final = 2


class Admin:
    """The endpoint of one server, in a thread of its own."""

    def __init__(self, server: "Server", listen: str, given: socket.socket | None = None) -> None:
        self._listen = listen
        self._given = given
        self._socket: socket.socket | None = None
        self._http = uvicorn.Server(
            uvicorn.Config(
                application(server, listen),
                http=LimitedHttp,
                ws="none",
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                backlog=BACKLOG,
                h11_max_incomplete_event_size=HEADERS,
                timeout_keep_alive=IDLE_TIME,
                timeout_graceful_shutdown=GRACE,
            )
        )
        self._thread = threading.Thread(target=self._serve, name="admin", daemon=True)
        self._serving: Future[None] = Future()
        self.address = ""

    def start(self) -> None:
        """Listen and serve; raises OSError with the address where that cannot be, and nothing is left of it then."""
        if self._given is None:
            self._socket, self.address = listen_on(self._listen)
        else:
            # One of our own for uvicorn to close.
            self._socket = self._given.dup()
            self.address = self._listen if self._listen.startswith("unix:") else f"http://{self._listen}"
        try:
            start_thread(self._thread)
            self._serving.result()
        except OSError as error:
            # The kernel refuses the thread, or the descriptors of its event loop.
            self.stop()
            raise OSError(error.errno, f"the admin endpoint cannot start ({error.strerror})", self.address) from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop serving, close the socket and remove its file. Can be called twice, and after a start that failed."""
        if self._socket is None:
            return
        self._http.should_exit = True
        if self._thread.ident is not None:
            self._thread.join()
        self._socket.close()
        self._socket = None
        if self._given is None and self.address.startswith("unix:"):
            Path(self.address.removeprefix("unix:")).unlink(missing_ok=True)

    def _serve(self) -> None:
        # Who looks at a server is not to slow those whom it serves. In Linux this is a thread's own; a sandbox may
        # forbid it, and then it is as every other.
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        try:
            asyncio.run(self._serve_here())
        except BaseException as error:
            if self._serving.done():
                raise
            self._serving.set_exception(error)

    async def _serve_here(self) -> None:
        assert self._socket is not None
        asyncio.get_running_loop().set_exception_handler(_log_failure)
        self._serving.set_result(None)
        await self._http.serve(sockets=[self._socket])


def _log_failure(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log in one line what no request can be told: above all that there is no descriptor left to accept with."""
    error = context.get("exception")
    LOG.error("the admin endpoint: %s%s", context["message"], f" ({error})" if error else "")


def listen_on(listen: str) -> tuple[socket.socket, str]:
    """Return a listening socket, and its address as a client names it; raises OSError with the address."""
    if listen.startswith("unix:"):
        return _listen_unix(listen.removeprefix("unix:")), listen
    point = ListeningPoint.parse(listen, 0).resolved()
    family = socket.AF_INET6 if ":" in point.host else socket.AF_INET
    # Named as TCP, or asyncio leaves Nagle's algorithm on: 40 ms for each answer on a connection that is kept.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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
