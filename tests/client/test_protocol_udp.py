"""The datagrams against the shared vectors, the checksum against the plain loop."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objmapper_client.errors import LocalProtocolError
from objmapper_client.protocol import MAX_URI, Refused, Request, crc32c, encode_request
from objmapper_client.protocol.udp import (
    Data,
    Error,
    Pull,
    Retry,
    checksum_of_uri,
    decode_reply,
    decode_request,
    encode_data,
    encode_error,
    encode_pull,
    encode_retry,
)
from tests.support.vectors import load, unhex

VECTORS = load("udp.txt")
NAMES = [row[0] for row in VECTORS]
#: Those that an encoder makes: no noise, no refused values, no padding.
GOOD = [
    row
    for row in VECTORS
    if row[3] != "noise" and not row[3].startswith("refused") and row[0] not in ("pull-padded", "error-not-utf8")
]


def expected_request(datagram: bytes) -> str:
    match decode_request(datagram):
        case None:
            return "noise"
        case Refused(status):
            return f"refused {status:02x}"
        case Request(mode, uri):
            return f"plain {chr(mode.value)} {uri.encode().hex()}"
        case Pull(request_id, offset, length, chunk, cookie, uri):
            return f"pull {request_id} {offset} {length} {chunk} {cookie.hex() or '-'} {uri.encode().hex()}"


def expected_reply(datagram: bytes, uri: str) -> str:
    match decode_reply(datagram, checksum_of_uri(uri)):
        case None:
            return "noise"
        case Retry(request_id, cookie):
            return f"retry {request_id} {cookie.hex()}"
        case Data(request_id, version, total, offset, payload):
            return f"data {request_id} {version:016x} {total} {offset} {payload.hex()}".rstrip()
        case Error(request_id, status, message):
            return f"error {request_id} {status:02x} {message.encode().hex()}".rstrip()


def promised(outcome: str) -> str:
    words = [unhex(word).hex() if "*" in word else word for word in outcome.split()]
    if words[0] == "error" and len(words) == 4:
        # Words for people: what is no UTF-8 is replaced.
        words[3] = unhex(words[3]).decode(errors="replace").encode().hex()
    return " ".join(words)


@pytest.mark.parametrize(("name", "side", "raw", "outcome"), VECTORS, ids=NAMES)
def test_a_datagram_is_what_the_vectors_say(name: str, side: str, raw: str, outcome: str) -> None:
    kind, _, uri = side.partition(" ")
    datagram = unhex(raw)
    found = expected_request(datagram) if kind == "question" else expected_reply(datagram, unhex(uri).decode())
    assert found == promised(outcome)


@pytest.mark.parametrize(("name", "side", "raw", "outcome"), GOOD, ids=[row[0] for row in GOOD])
def test_encoding_matches_the_vectors(name: str, side: str, raw: str, outcome: str) -> None:
    kind, _, uri_hex = side.partition(" ")
    datagram, uri = unhex(raw), unhex(uri_hex).decode()
    match decode_request(datagram) if kind == "question" else decode_reply(datagram, checksum_of_uri(uri)):
        case Pull() as pull:
            assert encode_pull(pull) == datagram
        case Request(mode, asked):
            assert encode_request(mode, asked) == datagram
        case Retry() as retry:
            assert encode_retry(retry) == datagram
        case Data() as data:
            assert encode_data(data, uri) == datagram
        case Error() as error:
            assert encode_error(error) == datagram
        case other:
            pytest.fail(f"not decoded: {other}")


def by_loop(data: bytes, crc: int) -> int:
    return crc32c._by_table(data, crc ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def test_the_checksum_is_crc_32c() -> None:
    assert crc32c.crc32c(b"123456789") == 0xE3069283
    # RFC 3720, B.4.
    assert crc32c.crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c.crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c.crc32c(bytes(range(32))) == 0x46DD794E


def test_every_fold_gives_what_the_loop_gives() -> None:
    lengths = {size // 8 + near for size, _ in crc32c._FOLDS if size < 2_000_000 for near in (-1, 0, 1, 2)}
    for length in sorted(lengths | set(range(80))):
        data = (b"some bytes that are not all alike; " * (length // 30 + 1))[:length]
        assert crc32c.crc32c(data, 0x1234567) == by_loop(data, 0x1234567), length


@given(st.binary(max_size=3000), st.binary(max_size=200))
def test_a_checksum_goes_on_where_it_ended(data: bytes, more: bytes) -> None:
    whole = by_loop(data + more, 0)
    assert crc32c.crc32c(memoryview(more), crc32c.crc32c(bytearray(data))) == whole
    assert crc32c.crc32c(data + more) == whole


@given(st.binary(max_size=200), st.booleans())
def test_no_bytes_break_the_decoders(data: bytes, magic: bool) -> None:
    datagram = b"U\x01" + data if magic else data
    decode_request(datagram)
    decode_reply(datagram, 7)


@given(st.binary(max_size=100), st.integers(0, 2**63), st.integers(0, 2**64 - 1), st.data())
def test_a_damaged_piece_is_noise(payload: bytes, offset: int, version: int, draw: st.DataObject) -> None:
    data = Data(5, version, offset + len(payload), offset, payload)
    datagram = bytearray(encode_data(data, "/a"))
    assert decode_reply(bytes(datagram), checksum_of_uri("/a")) == data
    assert decode_reply(bytes(datagram), checksum_of_uri("/b")) is None
    bit = draw.draw(st.integers(0, 8 * len(datagram) - 1))
    datagram[bit // 8] ^= 1 << bit % 8
    assert not isinstance(decode_reply(bytes(datagram), checksum_of_uri("/a")), Data)


@pytest.mark.parametrize("uri", ["", "a\0b", "n" * (MAX_URI + 1), "\ud800"])
def test_a_uri_that_the_wire_cannot_carry_is_the_callers_fault(uri: str) -> None:
    with pytest.raises(LocalProtocolError):
        encode_pull(Pull(1, 0, 1, 1, b"", uri))
    with pytest.raises(LocalProtocolError):
        checksum_of_uri(uri)
