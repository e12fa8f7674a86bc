"""The requests whose answer is no content: stat, list, delete, and the arguments of a put."""

from collections.abc import Callable
from typing import NamedTuple

from objmapper_client._connection.dispatch import require_version_2
from objmapper_client._connection.pending_request import PendingRequest, SimpleRequest, Verb, details
from objmapper_client._connection.pool import Pool
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

#: Bytes of a list's page at most: servers end it at 1 MiB.
_MAX_PAGE = 1 << 24
#: The form of a list's entries that says nanoseconds, and what was left out.
_DETAILED = 1
#: Pages without an entry, one after the other, that a list may have.
_EMPTY_PAGES = 10_000


class _Stated(NamedTuple):
    uri: str
    size: int
    mtime: int
    etag: str


class Stat(_Stated):
    """What a server says of an object: size in bytes, modification time in seconds since 1970 (0 over UDP), version.

    Beside them, as in `os.stat_result`: `mtime_ns`, the time in nanoseconds, None where the server does not send it.
    """

    mtime_ns: int | None = None


class StatRequest(SimpleRequest[Stat]):
    """What the server says of an object; also after a put."""

    def result(self) -> Stat:
        """What it said."""
        return stat_of(self.uri, self.metadata)

    def fallback_v1(self, pool: Pool) -> Effects[Stat]:
        """Version 1 has no such request."""
        yield from require_version_2(pool, self, "stat")
        return self.result()


def stat(_: Pool, uri: str) -> Verb[Stat]:
    """What the server says of an object."""
    return StatRequest(Operation.STAT, uri)


def stat_of(uri: str, metadata: Metadata) -> Stat:
    """What an answer says of its object."""
    size, mtime = metadata.size or 0, metadata.mtime or 0
    check_size(size)
    found = Stat(uri, size, mtime, metadata.etag or "")
    if metadata.nanoseconds is not None:
        found.mtime_ns = in_nanoseconds(mtime, metadata.nanoseconds)
    return found


class DeleteRequest(SimpleRequest[None]):
    """An object's removal."""

    idempotent = False

    def result(self) -> None:
        """Nothing."""

    def fallback_v1(self, pool: Pool) -> Effects[None]:
        """Version 1 has no such request."""
        yield from require_version_2(pool, self, "delete")
        return self.result()


def delete(_: Pool, uri: str, if_match: str | None) -> Verb[None]:
    """Removes an object."""
    pending = DeleteRequest(Operation.DELETE, uri)
    return pending if if_match is None else pending.with_parameters(details(if_match=if_match))


class PutArguments(NamedTuple):
    """What is to be stored, and on which conditions."""

    data: object
    length: int | None
    if_match: str | None
    if_none_match: str | None
    make_parents: bool
    progress: Callable[[int], None] | None


#: The entries, where the next page begins, and what was left out.
Page = tuple[list[Entry], bytes | None, list[LeftOut]]


class ListRequest(SimpleRequest[Page]):
    """A page of a list."""

    def result(self) -> Page:
        """The entries, where the next page begins (None where there is none), and what the server says it left out."""
        cursor = self.metadata.cursor or None
        try:
            if self.metadata.form == _DETAILED:
                listed, left_out = decode_details(self.content)
            else:
                listed, left_out = list(decode_entries(self.content)), []
            for uri, size, _ in listed:
                check_size(size)
                if not uri.startswith(self.uri):
                    raise RemoteProtocolError(f"the server listed {uri!r}, which does not begin with {self.uri!r}")
                # The first test costs little, and most URIs pass it.
                if ("/." in uri or "//" in uri or uri[0] == "." or uri[-1] == "/") and _strays(uri):
                    raise RemoteProtocolError(f"the server listed {uri!r}, which has a segment that no object can have")
        except RemoteProtocolError as error:
            raise violation_by(self, str(error)) from error
        return listed, cursor, left_out

    def fallback_v1(self, pool: Pool) -> Effects[Page]:
        """Version 1 has no such request."""
        yield from require_version_2(pool, self, "list")
        return self.result()


def _strays(uri: str) -> bool:
    """Whether a URI has a segment that is empty or leads elsewhere: as a path it could name any file of a client."""
    return not {"", ".", ".."}.isdisjoint(uri.removeprefix("/").split("/"))


class PageProgress:
    """What came of a list so far. Its pages must go on, or a server could keep a client listing for ever."""

    __slots__ = ("_cursors", "_last", "_prefix", "cursor")

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._last = ""
        #: Where the next page begins; None before the first and after the last.
        self.cursor: bytes | None = None
        # Those since the last entry.
        self._cursors: set[bytes] = set()

    def new_of(self, page: Page) -> list[Entry]:
        """The entries that were not in an earlier page. Raises RemoteProtocolError where the list does not go on."""
        found, self.cursor, _ = page
        last, new = self._last, []
        for entry in found:
            if entry.uri > last:
                last = entry.uri
                new.append(entry)
            elif entry.uri < last:
                raise RemoteProtocolError(f"{self._prefix}: the server listed {entry.uri!r} behind {last!r}")
        if new:
            self._last = last
            self._cursors.clear()
        if self.cursor is not None:
            if self.cursor in self._cursors or len(self._cursors) > _EMPTY_PAGES:
                raise RemoteProtocolError(f"{self._prefix}: the server's list does not go on behind {last!r}")
            self._cursors.add(self.cursor)
        return new


def list_page(_: Pool, prefix: str, page_size: int, cursor: bytes | None) -> Verb[Page]:
    """A page of a list, where the next one begins (None where there is none), and what was left out."""
    if page_size < 1:
        raise LocalProtocolError(f"a page has at least 1 entry, not {page_size}")
    said = details(limit=min(page_size, 0xFFFFFFFF), cursor=cursor, form=_DETAILED)
    return ListRequest(Operation.LIST, prefix).with_parameters(said, most=_MAX_PAGE)


def violation_by(pending: PendingRequest, words: str) -> RemoteProtocolError:
    """The error for an answer that cannot be true. No further requests are sent on its connection."""
    if pending.multiplexer is not None:
        pending.multiplexer.close_when_idle()
    return RemoteProtocolError(words)
