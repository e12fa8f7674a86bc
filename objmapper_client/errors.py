"""The error tree. Every error keeps its facts and says in one line what is wrong and what to try."""

import errno


def printable(text: str) -> str:
    r"""The text in one line, without what would move a terminal's cursor, change its colours, or forge a line of a log.

    Such characters are written as ``\n``, ``\x1b``, ``\u202e``; bytes that are not UTF-8 as ``\xff``.
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(each: str) -> str:
    if each.isprintable():
        return each
    # How a name of bytes that are not UTF-8 travels in a str.
    if "\udc80" <= each <= "\udcff":
        return f"\\x{ord(each) - 0xDC00:02x}"
    return each.encode("unicode_escape").decode()


class ObjmapperError(Exception):
    """Whatever goes wrong between a program and its objects."""


class AddressError(ObjmapperError, ValueError):
    """Not an address of a server."""


class ConnectionFailed(ObjmapperError, ConnectionError):
    """The server was not reached, or the connection broke."""


class RequestTimeout(ObjmapperError, TimeoutError):
    """No answer in time."""


class ProtocolError(ObjmapperError):
    """One side broke the protocol."""


class LocalProtocolError(ProtocolError, ValueError):
    """The caller asked for something that the protocol cannot say."""


class RemoteProtocolError(ProtocolError):
    """The server broke the protocol; the message names the rule. The connection was closed."""


class UnsupportedOperation(ObjmapperError):
    """The server, or the transport, has no such operation: a server of version 1 hands out objects and no more."""


class DescriptorLimit(ObjmapperError, OSError):
    """This process has no file descriptor left: for one that the server passed, a memory file or a connection."""

    errno: int | None = errno.EMFILE


class OutcomeUnknown(ObjmapperError):
    """A put or a delete was sent as a whole and not answered: the server may have executed it. It is not repeated.

    Look at the object before you repeat it. It comes as `UnansweredBreak` (also a ConnectionFailed) or as
    `UnansweredTimeout` (also a RequestTimeout), with the `operation`, the `uri` and the `reason`.
    """

    def __init__(self, operation: str, uri: str, reason: str) -> None:
        super().__init__(operation, uri, reason)
        self.operation = operation
        self.uri = uri
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.uri}: outcome of the {self.operation} unknown: it was sent as a whole and not answered "
            f"({self.reason}); look at the object before you repeat it"
        )


class UnansweredBreak(OutcomeUnknown, ConnectionFailed):
    """The connection broke before the answer to a put or a delete."""


class UnansweredTimeout(OutcomeUnknown, RequestTimeout):
    """The time was up before the answer to a put or a delete."""


class ServerReply(ObjmapperError):
    """The server answered with an error: its `status`, its words, and the `uri` that it was about."""

    advice = ""

    def __init__(self, status: int, message: str, uri: str) -> None:
        super().__init__(status, message, uri)
        self.status = status
        self.message = message
        self.uri = uri

    def __str__(self) -> str:
        return f"{self.uri}: {self.message}{self.advice}"


class ObjectNotFound(ServerReply, FileNotFoundError):
    """The URI names no object."""

    errno: int | None = errno.ENOENT


class InvalidRequest(ServerReply, ValueError):
    """The URI is none that an object can have."""


class UnsupportedMode(ServerReply):
    """The transport, or the server, cannot deliver an object this way."""


class PermissionDenied(ServerReply, PermissionError):
    """The object exists and is not handed out."""

    errno: int | None = errno.EACCES


class Conflict(ServerReply):
    """The object is not what the request supposed it to be."""


class ServerFailed(ServerReply):
    """The server, or its storage, failed."""


class ServerBusy(ServerReply):
    """The server refused for want of room; another try may succeed."""


class ServerTimeout(ServerReply, RequestTimeout):
    """The server gave the request up because it took too long."""


_BY_STATUS: dict[int, type[ServerReply]] = {
    0x01: ObjectNotFound,
    0x02: InvalidRequest,
    0x03: UnsupportedMode,
    0x04: InvalidRequest,
    0x05: UnsupportedMode,
    0x06: PermissionDenied,
    0x07: Conflict,
    0x13: ServerTimeout,
    0x14: ServerBusy,
}


def error_for(status: int, message: str, uri: str) -> ServerReply:
    """The error for a reply's status byte."""
    text = message or f"refused with status 0x{status:02x}"
    return _BY_STATUS.get(status, ServerFailed)(status, text, uri)


def at_limit(error: BaseException) -> DescriptorLimit | None:
    """The error to raise for one of the system's that says that there is no descriptor left; None for others."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return DescriptorLimit(
            f"no file descriptor left ({error.strerror}): raise the limit (ulimit -n) or close descriptors"
        )
    return None


def unanswered(operation: str, uri: str, error: ConnectionFailed | RequestTimeout) -> OutcomeUnknown:
    """The error for a put or a delete that may have been executed."""
    kind = UnansweredTimeout if isinstance(error, RequestTimeout) else UnansweredBreak
    return kind(operation, uri, str(error))
