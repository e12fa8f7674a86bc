"""The error classes. Each error's message is one line: the problem and the remedy. Its data are attributes."""

import errno


def printable(text: str) -> str:
    r"""Returns the text in one line, with control characters escaped: they could control a terminal or forge log lines.

    Such characters become ``\n``, ``\x1b``, ``\u202e``; bytes that are not UTF-8 become ``\xff``.
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    # A byte that is not UTF-8, as `surrogateescape` decodes it.
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


class ObjmapperError(Exception):
    """The base class of all errors of this package."""


class AddressError(ObjmapperError, ValueError):
    """The text is not a valid address of a server."""


class ConnectionFailed(ObjmapperError, ConnectionError):
    """The client could not connect to the server, or the connection broke."""


class RequestTimeout(ObjmapperError, TimeoutError):
    """The server did not answer in time."""


class ProtocolError(ObjmapperError):
    """The client or the server violated the protocol."""


class LocalProtocolError(ProtocolError, ValueError):
    """The caller passed arguments that the protocol cannot express."""


class RemoteProtocolError(ProtocolError):
    """The server violated the protocol; the message names the rule. The client has closed the connection."""


class UnsupportedOperation(ObjmapperError):
    """The server or the transport lacks the operation: a server of version 1 can only open and read objects."""


class DescriptorLimit(ObjmapperError, OSError):
    """This process is at its limit of file descriptors: for a passed one, a memory file or a connection."""

    errno: int | None = errno.EMFILE


class OutcomeUnknown(ObjmapperError):
    """The client sent a whole put or delete and got no answer: the server may have executed it. It is not retried.

    Check the object (`stat`) before you repeat the request. The subclasses are `UnansweredBreak` (also a
    ConnectionFailed) and `UnansweredTimeout` (also a RequestTimeout). Attributes: `operation`, `uri`, `reason`.
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
    """The time limit passed before the answer to a put or a delete."""


class ServerReply(ObjmapperError):
    """The server answered with an error. Attributes: its `status` and `message`, and the request's `uri`."""

    advice = ""

    def __init__(self, status: int, message: str, uri: str) -> None:
        super().__init__(status, message, uri)
        self.status = status
        self.message = message
        self.uri = uri

    def __str__(self) -> str:
        return f"{self.uri}: {self.message}{self.advice}"


class ObjectNotFound(ServerReply, FileNotFoundError):
    """There is no object with this URI."""

    errno: int | None = errno.ENOENT


class InvalidRequest(ServerReply, ValueError):
    """The URI is not valid."""


class UnsupportedMode(ServerReply):
    """The transport or the server cannot deliver the object in this mode."""


class PermissionDenied(ServerReply, PermissionError):
    """The server may not read the object, or its rules deny access to it."""

    errno: int | None = errno.EACCES


class Conflict(ServerReply):
    """The object does not meet the request's condition (`if_match`, `if_none_match`), or changed during a read."""


class ServerFailed(ServerReply):
    """The server or its storage failed."""


class ServerBusy(ServerReply):
    """The server rejected the request because it is at a limit; a later request may succeed."""


class ServerTimeout(ServerReply, RequestTimeout):
    """The server aborted the request because it took too long."""


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


def descriptor_limit_error(error: BaseException) -> DescriptorLimit | None:
    """Returns a DescriptorLimit for EMFILE and ENFILE; None for other errors."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return DescriptorLimit(
            f"no file descriptor left ({error.strerror}): raise the limit (ulimit -n) or close descriptors"
        )
    return None


def outcome_unknown(operation: str, uri: str, error: ConnectionFailed | RequestTimeout) -> OutcomeUnknown:
    """The error for a put or a delete that the server may have executed."""
    kind = UnansweredTimeout if isinstance(error, RequestTimeout) else UnansweredBreak
    return kind(operation, uri, str(error))
