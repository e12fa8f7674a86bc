"""A client of the admin endpoint. Only this module imports httpx."""

import errno
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from objmapper_cli.errors import CommandError, ExitCode

if TYPE_CHECKING:
    import httpx

DEFAULT_ADDRESS: Final = "http://127.0.0.1:9997"
#: Seconds.
REQUEST_TIMEOUT: Final = 10.0
#: Seconds between two attempts while waiting for an endpoint.
RETRY_INTERVAL: Final = 0.05
#: Errors of a connection that a later start of the server does not change.
PERMANENT_ERRORS: Final = (errno.EACCES, errno.EPERM, errno.EINVAL)


class AdminClient:
    """A client of one endpoint: ``http://HOST:PORT``, ``HOST:PORT`` or ``unix:/PATH``. Raises `CommandError`.

    A request waits up to `wait` seconds for an endpoint that is starting.
    """

    def __init__(self, address: str | None, wait: float = 0.0) -> None:
        self._wait = wait
        self.address = address or os.environ.get("OBJMAPPER_ADMIN") or DEFAULT_ADDRESS
        self._socket = self.address.removeprefix("unix:") if self.address.startswith(("unix:", "/")) else None
        url = self.address if "://" in self.address else f"http://{self.address}"
        self._base = "http://localhost" if self._socket else url.rstrip("/")
        try:
            split = urlsplit(self._base)
            _ = split.port
        except ValueError as error:
            raise CommandError(f"invalid admin address {self.address!r}: {error}", ExitCode.USAGE) from error
        if split.scheme not in ("http", "https") or not split.hostname or self.address == "unix:":
            raise CommandError(
                f"invalid admin address {self.address!r}: expected http://HOST:PORT or unix:/PATH", ExitCode.USAGE
            )

    def read(self, path: str, *names: str) -> dict[str, Any]:
        """Return the document at `path`, which must have these keys."""
        return self._document(self._request("GET", path), names)

    def text(self, path: str, *names: str) -> str:
        """Return the same document as text."""
        text = self._request("GET", path)
        self._document(text, names)
        return text

    def post(self, path: str, content: dict[str, Any], *names: str) -> dict[str, Any]:
        """Send a document as JSON and return the response; authorized by OBJMAPPER_ADMIN_TOKEN, if set."""
        return self._document(self._request("POST", path, content), names)

    def _document(self, text: str, names: tuple[str, ...]) -> dict[str, Any]:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict) or not document.keys() >= set(names):
            raise CommandError(f"{self.address}: the answer is not from an objmapper server: {text[:60]!r}")
        return document

    @contextmanager
    def checking_documents(self) -> Iterator[None]:
        """Raise `CommandError` if the block does not find an expected value in a document."""
        try:
            yield
        except (KeyError, TypeError, AttributeError) as error:
            problem = f"has no {error}" if isinstance(error, KeyError) else f"is not as expected ({error})"
            raise CommandError(f"{self.address}: the answer {problem}; is the server of another version?") from error

    def _request(self, method: str, path: str, content: dict[str, Any] | None = None) -> str:
        import httpx

        token = os.environ.get("OBJMAPPER_ADMIN_TOKEN") if method != "GET" else None
        if token and (token != token.strip() or not token.isprintable()):
            # The HTTP client's own error would show the token.
            raise CommandError(
                "OBJMAPPER_ADMIN_TOKEN: expected printable text in UTF-8 without white space at its ends",
                ExitCode.USAGE,
            )
        # httpx encodes text as ASCII; the server reads UTF-8.
        headers = {b"Authorization": f"Bearer {token}".encode()} if token else {}
        # Do not use a proxy of the environment for the server's own endpoint.
        transport = httpx.HTTPTransport(uds=self._socket)
        try:
            with httpx.Client(transport=transport, timeout=REQUEST_TIMEOUT, trust_env=False) as client:
                answer = self._answer(
                    client, client.build_request(method, self._base + path, json=content, headers=headers)
                )
        except httpx.TimeoutException as error:
            raise CommandError(f"{self.address}: no answer in {REQUEST_TIMEOUT:.0f} s", ExitCode.TIMEOUT) from error
        except (UnicodeError, httpx.InvalidURL) as error:
            raise CommandError(f"invalid admin address {self.address!r}: {error}", ExitCode.USAGE) from error
        except httpx.RequestError as error:
            raise CommandError(
                f"{self.address}: no admin endpoint ({error}); is `objmapper serve` running? --admin names another",
                ExitCode.NOT_REACHED,
            ) from error
        if answer.status_code in (401, 403):
            raise CommandError(f"{self.address}: refused: {answer.text[:200]}", ExitCode.REFUSED)
        if answer.status_code != 200:
            raise CommandError(f"{self.address}: answered {answer.status_code} to {path}: {answer.text[:200]}")
        return answer.text

    def _answer(self, client: "httpx.Client", request: "httpx.Request") -> "httpx.Response":
        import httpx

        deadline = time.monotonic() + self._wait
        while True:
            try:
                return client.send(request)
            except httpx.ConnectError as error:
                # Nothing was sent, so any request may be tried again.
                if time.monotonic() >= deadline or not _is_temporary(error):
                    raise
            time.sleep(RETRY_INTERVAL)


def _is_temporary(error: BaseException) -> bool:
    """Whether a server that starts later could change the error: its causes do not forbid the connection."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in PERMANENT_ERRORS:
            return False
        cause = cause.__cause__ or cause.__context__
    return True
