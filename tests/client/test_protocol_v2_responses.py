"""The responses of version 2 against the shared vectors, and against themselves."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objmapper_client.errors import LocalProtocolError, RemoteProtocolError
from objmapper_client.protocol import MAX_URI, Status
from objmapper_client.protocol.v2_requests import CloseAck, CloseFrame, Operation, encode_close, encode_close_ack
from objmapper_client.protocol.v2_responses import (
    Entry,
    Metadata,
    ResponseDecoder,
    ResponseHead,
    decode_details,
    decode_entries,
    encode_entry,
    encode_response,
)
from tests.support.vectors import expanded, load, unhex

RESPONSES = load("v2_responses.txt")
ENTRIES = load("v2_entries.txt")
NEXT = encode_response(42, Status.NOT_FOUND, metadata=Metadata(message="next"))


def describe(head: ResponseHead) -> str:
    words = ["head", f"{head.id:08x}", f"{head.status:02x}", f"{head.content_len}"]
    for name, value in head.metadata._asdict().items():
        if value is not None:
            raw = value.encode("utf-8" if name == "message" else "latin-1") if isinstance(value, str) else value
            shown = raw if isinstance(raw, int) else raw.hex()
            words.append(f"{'text' if name == 'message' else name}={shown}")
    return " ".join(words)


def decode(extended: bool, asked: dict[int, Operation], pieces: list[bytes]) -> list[str]:
    """What comes out, in the words of the vectors, for a client that `asked` so. Contents are put together."""
    decoder, asked, out = ResponseDecoder(extended=extended), dict(asked), []
    to_take, content, waits_for_marker = 0, b"", False
    for piece in pieces:
        decoder.feed(piece)
        try:
            while True:
                if waits_for_marker:
                    came = decoder.take_marker()
                    if came is None:
                        break
                    out += ["marker"] * came
                    waits_for_marker = False
                if to_take:
                    taken = decoder.take_content(to_take)
                    content, to_take = content + taken, to_take - len(taken)
                    if to_take:
                        break
                    out.append(f"content {len(content)} {content.hex()}")
                    content = b""
                match decoder.next(asked.get):
                    case None:
                        break
                    case ResponseHead() as head:
                        out.append(describe(head))
                        by_descriptor = asked.pop(head.id) is Operation.FDPASS
                        waits_for_marker = by_descriptor and head.status == Status.OK
                        to_take = 0 if by_descriptor else head.content_len
                    case CloseFrame(reason):
                        out.append(f"close {reason:02x}")
                    case CloseAck(outstanding):
                        out.append(f"ack {outstanding}")
        except RemoteProtocolError:
            return [*out, "broken"]
    return out


def requested_operation(text: str) -> dict[int, Operation]:
    """``1=2 2=s``: what was asked under which id."""
    pairs = [word.split("=") for word in text.split()]
    return {int(request_id): Operation(ord(mode)) for request_id, mode in pairs}


@pytest.mark.parametrize(("name", "version", "asked", "raw", "outcome"), RESPONSES, ids=[row[0] for row in RESPONSES])
def test_responses_decode_as_the_vectors_say_however_they_are_cut(
    name: str, version: str, asked: str, raw: str, outcome: str
) -> None:
    extended, requests, data, expected = (
        version == "extended",
        requested_operation(asked),
        unhex(raw),
        expanded(outcome),
    )
    assert decode(extended, requests, [data]) == expected
    assert decode(extended, requests, [data[at : at + 1] for at in range(len(data))]) == expected
    requests[42] = Operation.COPY
    if "broken" in outcome:
        assert decode(extended, requests, [data + NEXT]) == expected
    elif not data or not outcome.endswith("more"):
        assert decode(extended, requests, [data + NEXT]) == [*expected, "head 0000002a 01 0 text=6e657874"]


@pytest.mark.parametrize(("name", "raw", "outcome"), ENTRIES, ids=[row[0] for row in ENTRIES])
def test_lists_are_what_the_vectors_say(name: str, raw: str, outcome: str) -> None:
    content = unhex(raw)
    if outcome == "broken":
        with pytest.raises(RemoteProtocolError):
            list(decode_entries(content))
        return
    words = [each.split() for each in outcome.split(",") if each]
    expected = [Entry(unhex(uri).decode(), int(size), int(mtime)) for uri, size, mtime in words]
    assert list(decode_entries(content)) == expected
    assert b"".join(map(encode_entry, expected)) == content


u32, u64 = st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 64) - 1)
i64 = st.integers(-(1 << 63), (1 << 63) - 1)
words = st.none() | st.text(st.characters(max_codepoint=255), max_size=20)
texts = st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
metadata = st.builds(
    Metadata,
    size=st.none() | u64,
    mtime=st.none() | i64,
    etag=words,
    mime=words,
    backend=st.none() | st.integers(0, 255),
    latency=st.none() | u32,
    nanoseconds=st.none() | u32,
    cursor=st.none() | st.binary(max_size=20),
    message=texts,
    form=st.none() | st.integers(0, 255),
) | st.tuples(u64, i64, st.text("0123456789abcdef", min_size=16, max_size=16)).map(lambda usual: Metadata(*usual))


@given(
    st.lists(
        st.tuples(st.sampled_from(Operation), st.sampled_from([Status.OK, *Status]), metadata, st.binary(max_size=30)),
        max_size=8,
    ),
    st.booleans(),
    st.integers(1, 50),
)
def test_decoding_inverts_encoding(
    sent: list[tuple[Operation, Status, Metadata, bytes]], extended: bool, step: int
) -> None:
    data, expected, asked = b"", [], {}
    for request_id, (operation, status, said, content) in enumerate(sent):
        asked[request_id] = operation
        by_descriptor, delivers = operation is Operation.FDPASS, status == Status.OK
        content_len = len(content) if delivers and (extended or not by_descriptor) else 0
        data += encode_response(request_id, status, content_len, said)
        expected.append(describe(ResponseHead(request_id, status, content_len, said)))
        if delivers and by_descriptor and not extended:
            data += b"\x58"
            expected.append("marker")
        elif content_len and not by_descriptor:
            data += content
            expected.append(f"content {content_len} {content.hex()}")
    assert decode(extended, asked, [data[at : at + step] for at in range(0, len(data), step)]) == expected


nearly = st.lists(
    st.sampled_from([b"\2\0\0\0\1", b"\2\0\0\0\2\0", b"\0" * 8, b"\0\7", b"\5\0\1\1", b"\6\0\4\0\0\0\0", b"\3", b"X"])
    | st.binary(max_size=4),
    max_size=30,
).map(b"".join)


@given(nearly | st.binary(max_size=200), st.booleans(), st.sampled_from(Operation), st.integers(1, 20))
def test_pieces_of_whatever_comes_do_not_matter(data: bytes, extended: bool, operation: Operation, step: int) -> None:
    asked = dict.fromkeys(range(3), operation)
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    assert decode(extended, asked, pieces) == decode(extended, asked, [data])


@given(st.binary(max_size=100))
def test_no_bytes_break_a_list(content: bytes) -> None:
    try:
        found = list(decode_entries(content))
    except RemoteProtocolError:
        return
    assert b"".join(map(encode_entry, found)) == content


def test_closes_are_understood() -> None:
    data = encode_close(3) + encode_close_ack(70_000)
    assert decode(False, {}, [data]) == ["close 03", "ack 70000"]


def test_the_marker_is_waited_for_in_plain_version_2_only() -> None:
    plain, extended = ResponseDecoder(extended=False), ResponseDecoder(extended=True)
    assert (plain.take_marker(), extended.take_marker()) == (None, False)
    plain.feed(b"\x58")
    assert not plain.is_empty
    assert (plain.take_marker(), plain.is_empty) == (True, True)


def test_what_was_fed_is_not_changed() -> None:
    decoder, first = ResponseDecoder(extended=True), NEXT[:10]
    decoder.feed(first)
    asked = {42: Operation.COPY}
    assert decoder.next(asked.get) is None
    decoder.feed(NEXT[10:])
    assert decoder.next(asked.get) is not None
    assert first == NEXT[:10]


@pytest.mark.parametrize(
    ("status", "content_len", "said"),
    [
        (256, 0, Metadata()),
        (0, 1 << 64, Metadata()),
        (0, 0, Metadata(backend=256)),
        (0, 0, Metadata(etag="\u20ac")),
        (0, 0, Metadata(message="x" * 65_536)),
        (0, 0, Metadata(cursor=b"x" * 40_000, message="x" * 40_000)),
    ],
)
def test_a_response_that_the_wire_cannot_carry_is_the_callers_fault(
    status: int, content_len: int, said: Metadata
) -> None:
    with pytest.raises(LocalProtocolError):
        encode_response(1, status, content_len, said)


@pytest.mark.parametrize("uri", ["", "a\0b", "n" * (MAX_URI + 1)])
def test_an_entry_is_called_what_an_object_can_be_called(uri: str) -> None:
    with pytest.raises(LocalProtocolError):
        encode_entry(Entry(uri, 0, 0))


DETAILED = unhex("01 0002 2f61 0000000000000007 ffffffffffffffff 00000005 02 0003 2fff61 03 0003 2f642f")


def test_a_list_of_the_detailed_form_says_nanoseconds_and_what_was_left_out() -> None:
    listed, left_out = decode_details(DETAILED)
    assert listed == [Entry("/a", 7, -1)]
    assert listed[0].mtime_ns == -999_999_995
    assert [each.path for each in left_out] == [b"/\xffa", b"/d/"]
    assert "UTF-8" in left_out[0].reason
    assert "may not read" in left_out[1].reason
    assert decode_details(b"") == ([], [])
    copied = pickle.loads(pickle.dumps(listed[0]))
    assert (copied, copied.mtime_ns) == (listed[0], listed[0].mtime_ns)
    assert Entry("/a", 1, 2).mtime_ns is None


def test_a_list_of_the_detailed_form_that_is_cut_is_the_servers_fault() -> None:
    whole = {0, len(DETAILED)} | {at for at in range(len(DETAILED)) if at in (25, 31)}
    for at in sorted(set(range(len(DETAILED))) - whole):
        with pytest.raises(RemoteProtocolError):
            decode_details(DETAILED[:at])


@pytest.mark.parametrize(
    "content",
    ["00 0002 2f61", "05 0002 2f61", "02 0000", f"01 0001 ff {'00' * 20}", f"01 0001 61 {'00' * 16} 3b9aca00"],
)
def test_what_no_list_of_the_detailed_form_has_is_the_servers_fault(content: str) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_details(unhex(content))
