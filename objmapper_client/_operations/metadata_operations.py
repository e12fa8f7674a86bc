"""The stat, list and delete requests, and the arguments of a put."""

from collections.abc import Callable
from typing import NamedTuple

from objmapper_client._connection.pending_request import PendingRequest, Runnable, SimpleRequest, parameter_values
from objmapper_client._connection.pool import Pool
from objmapper_client._connection.request_runner import require_version_2
from objmapper_client._runtime.effects import Effects
from objmapper_client.errors import LocalProtocolError, RemoteProtocolError
from objmapper_client.protocol.v2_requests import Operation
from objmapper_client.protocol.v2_responses import (
    Entry,
    LeftOut,
    Metadata,
    check_size,
    decode_details,
    decode_entries,
    in_nanoseconds,
)

#: Maximum bytes of a list's page. Servers end a page at 1 MiB.
_MAX_PAGE = 1 << 24
#: The form of list entries with nanoseconds and omitted entries.
_DETAILED_FORM = 1
#: Maximum consecutive pages without an entry.
_EMPTY_PAGES = 10_000


class _StatFields(NamedTuple):
    uri: str
    size: int
    mtime: int
    etag: str


class Stat(_StatFields):
    """An object's metadata: size in bytes, modification time in seconds since 1970 (0 over UDP), version (`etag`).

    As in `os.stat_result` there is also `mtime_ns`, the time in nanoseconds; None if the server does not send it.
    """

    mtime_ns: int | None = None


class StatRequest(SimpleRequest[Stat]):
    """Gets an object's metadata; also the response to a put."""

    def result(self) -> Stat:
        """The object's metadata."""
        return to_stat(self.uri, self.metadata)

    def fallback_v1(self, pool: Pool) -> Effects[Stat]:
        """Version 1 has no such request."""
        yield from require_version_2(pool, self, "stat")
        return self.result()


def stat(_: Pool, uri: str) -> Runnable[Stat]:
    """Gets an object's metadata."""
    return StatRequest(Operation.STAT, uri)


def to_stat(uri: str, metadata: Metadata) -> Stat:
    """Makes a `Stat` of a response's metadata. Raises RemoteProtocolError."""
    size, mtime = metadata.size or 0, metadata.mtime or 0
    check_size(size)
    found = Stat(uri, size, mtime, metadata.etag or "")
    if metadata.nanoseconds is not None:
        found.mtime_ns = in_nanoseconds(mtime, metadata.nanoseconds)
    return found


class DeleteRequest(SimpleRequest[None]):
    """Removes an object."""

    idempotent = False

    def result(self) -> None:
        """Returns None."""

    def fallback_v1(self, pool: Pool) -> Effects[None]:
        """Version 1 has no such request."""
        yield from require_version_2(pool, self, "delete")
        return self.result()


def delete(_: Pool, uri: str, if_match: str | None) -> Runnable[None]:
    """Removes an object."""
    pending = DeleteRequest(Operation.DELETE, uri)
    return pending if if_match is None else pending.with_parameters(parameter_values(if_match=if_match))


class PutArguments(NamedTuple):
    """The arguments of a put: the data, conditions, and a callback."""

    data: object
    length: int | None
    if_match: str | None
    if_none_match: str | None
    make_parents: bool
    progress: Callable[[int], None] | None


#: The entries, the cursor of the next page, and the omitted entries.
Page = tuple[list[Entry], bytes | None, list[LeftOut]]


class ListRequest(SimpleRequest[Page]):
    """Gets a page of a list."""

    def result(self) -> Page:
        """The entries, the cursor of the next page (None after the last page), and the entries that the server omitted.

        Raises RemoteProtocolError for URIs that are outside of the prefix or could escape a client's directory.
        """
        cursor = self.metadata.cursor or None
        try:
            if self.metadata.form == _DETAILED_FORM:
                listed, left_out = decode_details(self.content)
            else:
                listed, left_out = list(decode_entries(self.content)), []
            for uri, size, _ in listed:
                check_size(size)
                if not uri.startswith(self.uri):
                    raise RemoteProtocolError(f"the server listed {uri!r}, which does not begin with {self.uri!r}")
                # The first test is cheap, and most URIs pass it.
                if ("/." in uri or "//" in uri or uri[0] == "." or uri[-1] == "/") and _has_invalid_segment(uri):
                    raise RemoteProtocolError(f"the server listed {uri!r}, which has an invalid segment")
        except RemoteProtocolError as error:
            raise protocol_violation(self, str(error)) from error
        return listed, cursor, left_out

    def fallback_v1(self, pool: Pool) -> Effects[Page]:
        """Version 1 has no such request."""
        yield from require_version_2(pool, self, "list")
        return self.result()


def _has_invalid_segment(uri: str) -> bool:
    """Whether a URI has an empty segment, "." or "..": as a path it could name any file of the client."""
    return not {"", ".", ".."}.isdisjoint(uri.removeprefix("/").split("/"))


class PageProgress:
    """Checks that the pages of a list advance, so that a server cannot keep a client listing for ever."""

    __slots__ = ("_cursors", "_last", "_prefix", "cursor")

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._last = ""
        #: The cursor of the next page; None before the first and after the last.
        self.cursor: bytes | None = None
        # The cursors since the last entry.
        self._cursors: set[bytes] = set()

    def add_page(self, page: Page) -> list[Entry]:
        """Returns the entries that no earlier page had. Raises RemoteProtocolError if the list does not advance."""
        found, self.cursor, _ = page
        last, new = self._last, []
        for entry in found:
            if entry.uri > last:
                last = entry.uri
                new.append(entry)
            elif entry.uri < last:
                raise RemoteProtocolError(f"{self._prefix}: the server listed {entry.uri!r} after {last!r}")
        if new:
            self._last = last
            self._cursors.clear()
        if self.cursor is not None:
            if self.cursor in self._cursors or len(self._cursors) > _EMPTY_PAGES:
                raise RemoteProtocolError(f"{self._prefix}: the server's list does not advance after {last!r}")
            self._cursors.add(self.cursor)
        return new


def list_page(_: Pool, prefix: str, page_size: int, cursor: bytes | None) -> Runnable[Page]:
    """Gets a page of a list. Raises LocalProtocolError if `page_size` is less than 1."""
    if page_size < 1:
        raise LocalProtocolError(f"page_size must be >= 1, got {page_size}")
    parameters = parameter_values(limit=min(page_size, 0xFFFFFFFF), cursor=cursor, form=_DETAILED_FORM)
    return ListRequest(Operation.LIST, prefix).with_parameters(parameters, max_content=_MAX_PAGE)


def check_range(offset: int, length: int | None) -> None:
    """Raises LocalProtocolError if the offset or the length is negative."""
    if offset < 0 or (length is not None and length < 0):
        raise LocalProtocolError(f"offset and length must be >= 0, got {offset} and {length}")


def protocol_violation(pending: PendingRequest, message: str) -> RemoteProtocolError:
    """Makes the error for an inconsistent response, and stops using its connection for further requests."""
    if pending.multiplexer is not None:
        pending.multiplexer.close_when_idle()
    return RemoteProtocolError(message)
