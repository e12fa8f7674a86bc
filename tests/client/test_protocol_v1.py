"""The codec against the shared vectors, and against itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objmapper_client.errors import LocalProtocolError, RemoteProtocolError
from objmapper_client.protocol import (
    MAX_URI,
    ContentReply,
    DescriptorReply,
    ErrorReply,
    Mode,
    Refused,
    ReplyDecoder,
    Request,
    RequestDecoder,
    encode_content_head,
    encode_error,
    encode_request,
)
from tests.support.vectors import load, unhex

REQUESTS = load("v1_requests.txt")
REPLIES = load("v1_replies.txt")
GOOD = bytes.fromhex("31 0003 2f7a7a")


def decode_requests(pieces: list[bytes]) -> list[str]:
    """What comes out, in the words of the vectors."""
    decoder, out = RequestDecoder(), []
    for piece in pieces:
        decoder.feed(piece)
        while (found := decoder.next()) is not None:
            match found:
                case Request(mode, uri):
                    out.append(f"request {chr(mode.value)} {uri.encode().hex()}")
                case Refused(status, fatal):
                    out.append(f"{'fatal' if fatal else 'refused'} {status:02x}")
    return out


def expected_requests(text: str) -> list[str]:
    words = [part.split() for part in text.split(",")]
    return [
        " ".join(part[:2] + [unhex(part[2]).hex()] if part[0] == "request" else part)
        for part in words
        if part != ["more"]
    ]


@pytest.mark.parametrize(("name", "raw", "outcome"), REQUESTS, ids=[row[0] for row in REQUESTS])
def test_requests_decode_as_the_vectors_say_however_they_are_cut(name: str, raw: str, outcome: str) -> None:
    data, expected = unhex(raw), expected_requests(outcome)
    assert decode_requests([data]) == expected
    assert decode_requests([data[at : at + 1] for at in range(len(data))]) == expected
    if not outcome.endswith("more") and "fatal" not in outcome:
        assert decode_requests([data + GOOD]) == [*expected, "request 1 2f7a7a"]


def decode_replies(modes: str, pieces: list[bytes]) -> list[str]:
    decoder, out = ReplyDecoder(), []
    asked = [Mode(ord(mode)) for mode in modes]
    content: bytearray | None = None
    length = 0
    for piece in pieces:
        decoder.feed(piece)
        while True:
            if content is not None:
                content += decoder.take_content(length - len(content))
                if len(content) < length:
                    break
                out.append(f"content {length} {content.hex()}".strip())
                content = None
            try:
                found = decoder.next(asked[0] if asked else None)
            except RemoteProtocolError:
                return [*out, "broken"]
            match found:
                case None:
                    break
                case DescriptorReply():
                    out.append("descriptor")
                case ContentReply(length):
                    content = bytearray()
                case ErrorReply(status, message):
                    out.append(f"error {status:02x} {message}".strip())
            asked.pop(0)
    return out


def expected_replies(text: str) -> list[str]:
    out = []
    for part in text.split(","):
        words = part.split()
        if words[0] == "error" and len(words) == 3:
            words[2] = unhex(words[2]).decode(errors="replace")
        if words != ["more"]:
            out.append(" ".join(words))
    return out


@pytest.mark.parametrize(("name", "modes", "raw", "outcome"), REPLIES, ids=[row[0] for row in REPLIES])
def test_replies_decode_as_the_vectors_say_however_they_are_cut(name: str, modes: str, raw: str, outcome: str) -> None:
    data, expected = unhex(raw), expected_replies(outcome)
    assert decode_replies(modes, [data]) == expected
    assert decode_replies(modes, [data[at : at + 1] for at in range(len(data))]) == expected
    if not outcome.endswith(("more", "broken")):
        behind = encode_error(1, "gone")
        assert decode_replies(modes + "1", [data + behind]) == [*expected, "error 01 gone"]


uris = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(
    lambda uri: len(uri.encode()) <= MAX_URI
)


@given(st.lists(st.tuples(st.sampled_from(Mode), uris), max_size=8), st.integers(1, 50))
def test_decoding_inverts_encoding(requests: list[tuple[Mode, str]], step: int) -> None:
    data = b"".join(encode_request(mode, uri) for mode, uri in requests)
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    expected = [f"request {chr(mode.value)} {uri.encode().hex()}" for mode, uri in requests]
    assert decode_requests(pieces) == expected


@given(st.integers(0, (1 << 63) - 1))
def test_a_content_head_says_the_length(length: int) -> None:
    decoder = ReplyDecoder()
    decoder.feed(encode_content_head(length))
    assert decoder.next(Mode.COPY) == ContentReply(length)


@given(st.binary(max_size=200), st.sampled_from(Mode))
def test_no_bytes_break_the_decoders(data: bytes, mode: Mode) -> None:
    decode_requests([data])
    decode_replies(chr(mode.value) * 4, [data])


@pytest.mark.parametrize("uri", ["", "a\0b", "n" * (MAX_URI + 1), "\ud800"])
def test_a_uri_that_the_wire_cannot_carry_is_the_callers_fault(uri: str) -> None:
    with pytest.raises(LocalProtocolError):
        encode_request(Mode.COPY, uri)
