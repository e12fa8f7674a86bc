"""The codec of version 2 against the shared vectors, and against itself: the beginning, and requests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objmapper_client.errors import LocalProtocolError, RemoteProtocolError
from objmapper_client.protocol import MAX_CONTENT, MAX_URI, ErrorReply, Mode, Status
from objmapper_client.protocol.hello import (
    HELLO_ACK_SIZE,
    HELLO_SIZE,
    Capability,
    Hello,
    HelloAck,
    decode_hello,
    decode_hello_ack,
    encode_hello,
    encode_hello_ack,
)
from objmapper_client.protocol.v2_requests import (
    MAX_PARAMETERS,
    CloseFrame,
    Fatal,
    Operation,
    Parameters,
    Refused,
    Request,
    RequestDecoder,
    encode_close,
    encode_request,
)
from tests.support.vectors import expanded, load, unhex

HELLOS = load("v2_hello.txt")
REQUESTS = load("v2_requests.txt")
NEXT = encode_request(42, Operation.COPY, "/next")
NAMES = {"deadline_ms": "deadline"}
NAMED = ("offset", "length", "deadline_ms", "content_len", "if_none_match", "limit", "cursor", "if_match", "form")


def hex_of(value: str | bytes) -> str:
    return (value.encode("latin-1") if isinstance(value, str) else value).hex()


def describe(request: Request) -> str:
    words = ["request", f"{request.id:08x}", f"{request.flags:02x}", chr(request.operation.value)]
    words.append(request.uri.encode().hex())
    for name in NAMED:
        value = getattr(request.parameters, name)
        if value is not None:
            words.append(f"{NAMES.get(name, name)}={value if isinstance(value, int) else hex_of(value)}")
    return " ".join(words + ["make_parents"] * request.parameters.make_parents)


def decode(extended: bool, pieces: list[bytes]) -> list[str]:
    """What comes out, in the words of the vectors. Contents are taken off."""
    decoder, out = RequestDecoder(extended=extended), []
    to_take, content = 0, b""
    for piece in pieces:
        decoder.feed(piece)
        while True:
            if to_take:
                taken = decoder.take_content(to_take)
                content, to_take = content + taken, to_take - len(taken)
                if to_take:
                    break
                out.append(f"content {len(content)} {content.hex()}")
                content = b""
            match decoder.next():
                case None:
                    break
                case Request() as request:
                    out.append(describe(request))
                    to_take = request.parameters.content_len or 0
                case Refused(request_id, status, to_take):
                    out.append(f"refused {request_id:08x} {status:02x}")
                case CloseFrame(reason):
                    out.append(f"close {reason:02x}")
                case Fatal(status):
                    out.append(f"fatal {status:02x}")
    return out


def feed_bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


@pytest.mark.parametrize(("name", "version", "raw", "outcome"), REQUESTS, ids=[row[0] for row in REQUESTS])
def test_requests_decode_as_the_vectors_say_however_they_are_cut(
    name: str, version: str, raw: str, outcome: str
) -> None:
    extended, data, expected = version == "extended", unhex(raw), expanded(outcome)
    assert decode(extended, [data]) == expected
    assert decode(extended, feed_bytewise(data)) == expected
    if "fatal" in outcome:
        assert decode(extended, [data + NEXT]) == expected
    elif not data or not outcome.endswith("more"):
        assert decode(extended, [data + NEXT]) == [*expected, "request 0000002a 00 2 2f6e657874"]


def decode_handshake(reader: str, data: bytes) -> str:
    """What a side finds at the beginning, in the words of the vectors."""
    try:
        found = decode_hello(data) if reader == "server" else decode_hello_ack(data)
    except RemoteProtocolError as error:
        return "wrong-version" if "version" in str(error) else "broken"
    match found:
        case Hello(capabilities, most):
            return f"hello {capabilities:04x} {most}"
        case HelloAck(capabilities, most, parallelism):
            return f"ack {capabilities:04x} {most} {parallelism}"
        case Fatal(status):
            return {Status.VERSION_MISMATCH: "wrong-version", Status.PROTOCOL_ERROR: "broken"}[status]
        case ErrorReply(status, message):
            return f"refused {status:02x} {message.encode().hex()}".strip()
    return "more"


@pytest.mark.parametrize(("name", "reader", "raw", "outcome"), HELLOS, ids=[row[0] for row in HELLOS])
def test_a_connection_begins_as_the_vectors_say(name: str, reader: str, raw: str, outcome: str) -> None:
    data = unhex(raw)
    assert decode_handshake(reader, data) == outcome
    # What is wrong may be seen before all of it is there.
    early = {"more", outcome} if outcome in {"broken", "wrong-version"} else {"more"}
    assert {decode_handshake(reader, data[:end]) for end in range(len(data))} <= early
    if outcome != "more":
        assert decode_handshake(reader, data + NEXT) == outcome


def test_both_sides_of_a_beginning_understand_each_other() -> None:
    hello = encode_hello(Capability.PIPELINING | Capability.EXTENDED, 64)
    assert len(hello) == HELLO_SIZE
    assert decode_hello(hello) == Hello(Capability.PIPELINING | Capability.EXTENDED, 64)
    ack = encode_hello_ack(Capability.EXTENDED, 10, 2)
    assert len(ack) == HELLO_ACK_SIZE
    assert decode_hello_ack(ack) == HelloAck(Capability.EXTENDED, 10, 2)


@pytest.mark.parametrize("most", [-1, 65_536])
def test_a_pipeline_that_the_wire_cannot_say_is_the_callers_fault(most: int) -> None:
    with pytest.raises(LocalProtocolError):
        encode_hello(Capability.PIPELINING, most)


def test_an_operation_delivers_in_each_mode() -> None:
    assert [Operation.of(mode) for mode in Mode] == [Operation.FDPASS, Operation.COPY, Operation.SPLICE]


def test_flags_have_names() -> None:
    ordered, urgent = Request(1, Operation.COPY, "/a", 0x01), Request(1, Operation.COPY, "/a", 0x02)
    assert (ordered.is_ordered, ordered.has_priority) == (True, False)
    assert (urgent.is_ordered, urgent.has_priority) == (False, True)


uris = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=200)
u32, u64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
etags = st.text(st.characters(max_codepoint=255), max_size=20)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    operation = draw(st.sampled_from(Operation))
    parameters = Parameters(
        offset=draw(st.none() | u64),
        length=draw(st.none() | u64),
        deadline_ms=draw(st.none() | u32),
        content_len=draw(st.integers(0, 30)) if operation is Operation.PUT else None,
        if_none_match=draw(st.none() | etags),
        limit=draw(st.none() | u32),
        cursor=draw(st.none() | st.binary(max_size=20)),
        if_match=draw(st.none() | etags),
        make_parents=draw(st.booleans()),
        form=draw(st.none() | st.integers(0, 255)),
    )
    has_any = parameters != Parameters()
    flags = draw(st.integers(0, 255)) | (0x80 if has_any else 0)
    return Request(draw(u32), operation, draw(uris), flags, parameters)


@given(st.lists(requests(), max_size=8), st.integers(1, 50))
def test_decoding_inverts_encoding(sent: list[Request], step: int) -> None:
    data, expected = b"", []
    for request in sent:
        data += encode_request(
            request.id, request.operation, request.uri, flags=request.flags, parameters=request.parameters
        )
        expected.append(describe(request))
        length = request.parameters.content_len
        if length:
            data += b"\1" * length
            expected.append(f"content {length} {'01' * length}")
    assert decode(True, [data[at : at + step] for at in range(0, len(data), step)]) == expected


nearly = st.lists(
    st.sampled_from([b"\1\0\0\0\1", b"\3", b"\x80", b"\0", b"1", b"p", b"\0\1", b"\0\2/a", b"\x84\0\x08", b"\0" * 7])
    | st.binary(max_size=4),
    max_size=30,
).map(b"".join)


@given(nearly | st.binary(max_size=200), st.booleans(), st.integers(1, 20))
def test_pieces_of_whatever_comes_do_not_matter(data: bytes, extended: bool, step: int) -> None:
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    assert decode(extended, pieces) == decode(extended, [data])


@given(st.binary(max_size=20))
def test_no_bytes_break_a_beginning(data: bytes) -> None:
    decode_handshake("server", data)
    decode_handshake("client", data)


@pytest.mark.parametrize("uri", ["", "a\0b", "n" * (MAX_URI + 1), "\ud800"])
def test_a_uri_that_the_wire_cannot_carry_is_the_callers_fault(uri: str) -> None:
    with pytest.raises(LocalProtocolError):
        encode_request(1, Operation.COPY, uri)


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        (Operation.PUT, Parameters()),
        (Operation.DELETE, Parameters(content_len=1)),
        (Operation.PUT, Parameters(content_len=MAX_CONTENT + 1)),
        (Operation.COPY, Parameters(offset=-1)),
        (Operation.COPY, Parameters(length=1 << 64)),
        (Operation.COPY, Parameters(deadline_ms=1 << 32)),
        (Operation.COPY, Parameters(if_none_match="\u20ac")),
        (Operation.LIST, Parameters(cursor=b"x" * MAX_PARAMETERS)),
        (Operation.LIST, Parameters(cursor=b"x" * 65_536)),
    ],
)
def test_parameters_that_the_wire_cannot_carry_are_the_callers_fault(
    operation: Operation, parameters: Parameters
) -> None:
    with pytest.raises(LocalProtocolError):
        encode_request(1, operation, "/a", parameters=parameters)


@pytest.mark.parametrize("request_id", [-1, 1 << 32])
def test_an_id_that_the_wire_cannot_carry_is_the_callers_fault(request_id: int) -> None:
    with pytest.raises(LocalProtocolError):
        encode_request(request_id, Operation.COPY, "/a")


def test_nothing_follows_a_fatal_error() -> None:
    decoder = RequestDecoder(extended=True)
    decoder.feed(b"\x7f")
    assert decoder.next() == Fatal(Status.PROTOCOL_ERROR)
    decoder.feed(encode_close(0))
    assert decoder.next() is None
