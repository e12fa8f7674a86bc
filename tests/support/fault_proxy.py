"""An HTTP proxy before one server: counts requests, and puts the faults in that a test asks for."""

import http.client
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

#: Headers that belong to one connection, not to the message.
OF_CONNECTION: Final = frozenset({"connection", "keep-alive", "transfer-encoding", "proxy-connection"})


@dataclass
class Request:
    """A request as the proxy got it."""

    method: str
    path: str
    headers: dict[str, str]  #: by lower-case name


@dataclass
class Fault:
    """What happens to one request instead of an answer, or to its answer."""

    status: int = 0  #: answers with this status, without asking the server
    headers: dict[str, str] = field(default_factory=dict)  #: added to the answer, or instead of the server's
    delay: float = 0.0  #: seconds before the answer begins
    cut_after: int | None = None  #: closes the connection after these bytes of the body
    stall_after: int | None = None  #: sends no more after these bytes, until the proxy ends


class FaultProxy:
    """Forwards to the server at `upstream` until the block is left. `fault` says what goes wrong with a request."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self.upstream = (parts.hostname or "", parts.port or 80)
        self.requests: list[Request] = []
        self.fault: Callable[[Request], Fault | None] = lambda _: None
        self._ended = threading.Event()
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    @property
    def url(self) -> str:
        """Where clients connect."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def count(self, method: str = "GET", containing: str = "") -> int:
        """Return the number of requests so far."""
        return sum(each.method == method and containing in each.path for each in self.requests)

    def wait_for_end(self) -> None:
        """Return when the proxy ends."""
        self._ended.wait(60)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FaultProxy

    def handle_request(self) -> None:
        request = Request(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
        body = self.rfile.read(int(request.headers.get("content-length", 0)))
        self.owner.requests.append(request)
        fault = self.owner.fault(request) or Fault()
        time.sleep(fault.delay)
        if fault.status:
            self._begin(fault.status, {"content-length": "0"} | fault.headers)
            return
        connection = http.client.HTTPConnection(*self.owner.upstream, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in OF_CONNECTION:
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.getheaders() if name.lower() not in OF_CONNECTION}
            content = b"" if self.command == "HEAD" else answer.read()
            if "content-length" not in headers and answer.status not in {204, 304}:
                headers["content-length"] = str(len(content))
            self._begin(answer.status, headers | fault.headers)
            self._send(content, fault)
        except OSError:
            self.close_connection = True
        finally:
            connection.close()

    def _begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, content: bytes, fault: Fault) -> None:
        limit = fault.cut_after if fault.cut_after is not None else fault.stall_after
        self.wfile.write(content if limit is None else content[:limit])
        if fault.stall_after is not None:
            self.owner.wait_for_end()
        if limit is not None:
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_request  # noqa: N815 - named by the base class

    def log_message(self, *args: Any) -> None:
        """Print nothing."""
