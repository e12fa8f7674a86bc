"""The lifecycle of the admin endpoint: HTTP for people and monitoring, in a thread of its own.

Rule: the endpoint serves no objects, and the data plane never waits for it.
"""

import asyncio
import contextlib
import logging
import os
import socket
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from objmapper_server.admin.http_limits import BACKLOG, IDLE_TIMEOUT, MAX_HEADER_SIZE, LimitedHttp
from objmapper_server.admin.routes import create_application
from objmapper_server.settings.listen_address import ListenAddress
from objmapper_server.socket_path import SocketPath
from objmapper_server.start_thread import start_thread

if TYPE_CHECKING:
    from objmapper_server.server import Server

LOG: Final = logging.getLogger(__name__)
SOCKET_PERMISSIONS: Final = 0o600
#: The nice value of its thread (setpriority(2), 0 to 19), below the data plane's priority.
NICE: Final = 10
#: Maximum seconds of a stop; its connections have less (`http_limits.STOP_TIMEOUT`).
STOP_TIMEOUT: Final = 2


class Admin:
    """The admin endpoint of one server, in a thread of its own."""

    def __init__(self, server: "Server", listen: str, inherited_socket: socket.socket | None = None) -> None:
        self._listen = listen
        self._inherited_socket = inherited_socket
        self._socket: socket.socket | None = None
        self._own_socket: socket.socket | None = None
        self._claim: SocketPath | None = None
        self._http = uvicorn.Server(
            uvicorn.Config(
                create_application(server, listen),
                http=LimitedHttp,
                ws="none",
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                backlog=BACKLOG,
                h11_max_incomplete_event_size=MAX_HEADER_SIZE,
                timeout_keep_alive=IDLE_TIMEOUT,
                timeout_graceful_shutdown=STOP_TIMEOUT,
            )
        )
        self._thread = threading.Thread(target=self._serve, name="admin", daemon=True)
        self._serving: Future[None] = Future()
        self.address = ""

    def start(self) -> None:
        """Listen and serve. Raises OSError with the address; it has released everything then."""
        if self._inherited_socket is None:
            # uvicorn closes the socket that it serves, so it gets a duplicate. This one stays open until `release`.
            self._own_socket, self.address, self._claim = listen_on(self._listen)
        else:
            # A duplicate for uvicorn to close.
            self._socket = self._inherited_socket.dup()
            self.address = self._listen if self._listen.startswith("unix:") else f"http://{self._listen}"
        try:
            if self._own_socket is not None:
                self._socket = self._own_socket.dup()
            start_thread(self._thread)
            self._serving.result()
        except OSError as error:
            # At the kernel's limit of threads, or of descriptors for the event loop.
            self.stop()
            raise OSError(error.errno, f"the admin endpoint cannot start ({error.strerror})", self.address) from error
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop serving, close the socket and remove its file. May be called twice, and after a failed start."""
        self._http.should_exit = True
        if self._thread.ident is not None:
            self._thread.join()
        if self._socket is not None:
            self._socket.close()
        if self._claim is not None:
            self._claim.release()
        if self._own_socket is not None:
            self._own_socket.close()

    def _serve(self) -> None:
        # Lower this thread's priority, so that admin requests do not slow the data plane. A sandbox may forbid that.
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        try:
            asyncio.run(self._serve_until_exit())
        except BaseException as error:
            if self._serving.done():
                raise
            self._serving.set_exception(error)

    async def _serve_until_exit(self) -> None:
        assert self._socket is not None
        asyncio.get_running_loop().set_exception_handler(_log_failure)
        self._serving.set_result(None)
        await self._http.serve(sockets=[self._socket])


def _log_failure(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error outside of requests in one line, such as a failed accept at the descriptor limit."""
    error = context.get("exception")
    LOG.error("the admin endpoint: %s%s", context["message"], f" ({error})" if error else "")


def listen_on(listen: str) -> tuple[socket.socket, str, SocketPath | None]:
    """Return a listening socket, its address as clients write it, and the claim of its path.

    Raises OSError with the address.
    """
    if listen.startswith("unix:"):
        listener, claim = _listen_unix(listen.removeprefix("unix:"))
        return listener, listen, claim
    point = ListenAddress.parse(listen, 0).resolve()
    family = socket.AF_INET6 if ":" in point.host else socket.AF_INET
    # With IPPROTO_TCP asyncio disables Nagle's algorithm, which would delay each answer by 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((point.host, point.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, "the admin endpoint cannot listen", f"http://{point}") from None
    return listener, f"http://{ListenAddress(point.host, listener.getsockname()[1])}", None


def _listen_unix(path: str) -> tuple[socket.socket, SocketPath]:
    listener, claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), None
    try:
        claim = SocketPath.claim(path)
        # bind(2) gives the file the permissions of the socket's own inode, so no other user can connect in between.
        os.fchmod(listener.fileno(), SOCKET_PERMISSIONS)
        listener.bind(path)
        claim.record_identity()
        Path(path).chmod(SOCKET_PERMISSIONS)
        listener.listen(BACKLOG)
    except OSError as error:
        if claim is not None:
            claim.release()
        listener.close()
        # The error for a path that is too long has no errno.
        has_reason = not error.errno or "another server" in str(error)
        reason = f"the admin endpoint cannot listen{f' ({error.strerror or error})' if has_reason else ''}"
        raise OSError(error.errno, reason, path) from None
    return listener, claim
