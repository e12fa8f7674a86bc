"""UDP servers that answer as no good server does."""

import os
import random

import pytest

from objmapper_client import Conflict, ObjectNotFound, RemoteProtocolError, RequestTimeout, ServerBusy, UnsupportedMode
from objmapper_client.protocol.udp import Data, Error, Pull, Retry, encode_data, encode_error, encode_retry
from tests.support.fake_udp_server import Script, fake_udp_server
from tests.udp.conftest import Read


def piece_of(content: bytes, total: int | None = None, version: int = 1) -> Script:
    """Sends the range's first piece."""

    def script(pull: Pull) -> list[bytes]:
        payload = content[pull.offset : pull.offset + min(pull.length, pull.chunk)]
        size = len(content) if total is None else total
        return [encode_data(Data(pull.request_id, version, size, pull.offset, payload), pull.uri)]

    return script


def versions(pull: Pull) -> list[bytes]:
    return [encode_data(Data(pull.request_id, random.getrandbits(63), 10**6, pull.offset, b"x"), pull.uri)]


def sizes(pull: Pull) -> list[bytes]:
    payload = bytes(min(pull.length, pull.chunk))
    return [
        encode_data(Data(pull.request_id, 1, pull.offset + len(payload) + more, pull.offset, payload), pull.uri)
        for more in (100_000, 200_000)
    ]


def damaged(pull: Pull) -> list[bytes]:
    return [piece_of(b"content")(pull)[0][:-1] + b"?"]


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        (piece_of(b"short", total=100_000), RemoteProtocolError, "bytes of a piece that has"),
        (piece_of(b"", total=1), RemoteProtocolError, "sent 0 bytes of a piece that has 1"),
        (piece_of(b"x", total=1 << 60), UnsupportedMode, "64 MiB"),
        # A piece beyond the object's size is dropped like one that was damaged.
        (piece_of(b"content", total=3), RequestTimeout, "no answer"),
        (piece_of(b"content", total=0), RequestTimeout, "no answer"),
        (sizes, RemoteProtocolError, "two sizes"),
        (versions, Conflict, "changed 3 times"),
        (damaged, RequestTimeout, "no answer"),
        (lambda pull: [encode_error(Error(pull.request_id, 0x01, "no"))], ObjectNotFound, "/x: no"),
        (lambda pull: [encode_error(Error(pull.request_id, 0x14, "busy"))], ServerBusy, "/x: busy"),
        (lambda pull: [encode_retry(Retry(pull.request_id, os.urandom(16)))], RequestTimeout, "no answer"),
        (lambda pull: [os.urandom(100), b"", b"U", bytes(65000)], RequestTimeout, "no answer"),
        (lambda pull: piece_of(b"theirs")(pull._replace(request_id=7)), RequestTimeout, "no answer"),
        (lambda pull: piece_of(b"theirs")(pull._replace(uri="/y")), RequestTimeout, "no answer"),
    ],
)
def test_a_server_that_lies_is_met_with_an_error(
    read: Read, script: Script, error: type[Exception], words: str
) -> None:
    with fake_udp_server(script) as address, pytest.raises(error, match=words):
        read(address, "/x", timeout=0.4 if error is RequestTimeout else 10)


def test_what_a_liar_may_not_do_an_honest_server_may(read: Read) -> None:
    with fake_udp_server(piece_of(b"content" * 9000)) as address:
        assert read(address, "/x") == b"content" * 9000
