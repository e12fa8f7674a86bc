"""How a connection of version 2 begins, and what is refused before it has."""

import pytest

from objmapper_client.protocol.hello import Capability
from objmapper_server import Server
from tests.support.raw_client import COPY as MODE_COPY
from tests.support.raw_client import INVALID_MODE, OK, PROTOCOL_ERROR, RawClient
from tests.support.raw_client import request as request_one
from tests.support.raw_client_v2 import COPY, EXTENDED, FDPASS, PLAIN, STAT, VERSION_MISMATCH, RawClientV2, frame, hello


@pytest.mark.parametrize(
    ("ours", "in_force"),
    [
        (0, 0),
        (Capability.OUT_OF_ORDER, Capability.OUT_OF_ORDER),
        (Capability.PIPELINING, Capability.PIPELINING),
        (PLAIN, PLAIN),
        (EXTENDED, EXTENDED),
        (Capability.EXTENDED, Capability.EXTENDED),
        (0xFFFF, EXTENDED),
        (0xFFFF & ~EXTENDED, 0),
    ],
    ids=hex,
)
def test_in_force_is_what_both_can(address: str, ours: int, in_force: int) -> None:
    with RawClientV2(address, ours) as two:
        assert two.ack.capabilities == in_force
        assert two.call(COPY, "/a").status == OK


@pytest.mark.parametrize(("ours", "in_force"), [(0, 1), (1, 1), (7, 7), (999, 999), (1000, 1000), (65535, 1000)])
def test_the_smaller_pipeline_counts(address: str, ours: int, in_force: int) -> None:
    with RawClientV2(address, EXTENDED, ours) as two:
        assert two.ack.max_pipeline == in_force
        assert two.ack.backend_parallelism >= 1


def test_the_documented_bytes(unix: str) -> None:
    with RawClientV2(unix, PLAIN, 16) as two:
        assert two.ack == (PLAIN, 16, two.ack.backend_parallelism)
        two.send(bytes.fromhex("01 00000007 00 32 0002 2f61"))
        assert two.take(17)[:14] == bytes.fromhex("02 00000007 00 0000000000000001")
    with RawClientV2(unix, EXTENDED) as two:
        two.send(bytes.fromhex("01 00000008 80 32 0002 2f61  0016  81 0008 0000000000000005  82 0008 000000000000000a"))
        two.expect(8)
        assert two.answer().read() == b""


@pytest.mark.parametrize("capabilities", [PLAIN, EXTENDED], ids=["plain", "extended"])
def test_hello_and_requests_may_come_byte_by_byte(address: str, capabilities: int) -> None:
    with RawClientV2.__new__(RawClientV2) as two:
        RawClient.__init__(two, address)
        for byte in hello(capabilities):
            two.send(bytes([byte]))
        two.greeted()
        for byte in two.encode(COPY, "/a") + two.encode(COPY, "/directory/nested é"):
            two.send(bytes([byte]))
        assert two.answer().content_len == 1
        assert two.answer().read() == b"nested"


def test_hello_and_requests_may_come_in_one_packet(server: Server, transport: str) -> None:
    with RawClientV2.__new__(RawClientV2) as two:
        RawClient.__init__(two, server.addresses[transport])
        requests = b"".join(frame(number, b"2", b"/a") for number in range(100))
        two.send(hello() + requests + frame(100, b"s", b"/a", parameters=b"") + frame(101, b"1", b"/a"))
        two.greeted()
        for number in range(100):
            two.expect(number)
        two.expect(100, STAT)
        two.expect(101, FDPASS)
        found = two.answers(102)
        assert [found[number].content_len for number in range(100)] == [1] * 100
        assert found[100].metadata.size == 1
        assert found[101].read() if transport == "unix" else found[101].fails(INVALID_MODE)


@pytest.mark.parametrize("version", [0, 1, 3, 255])
def test_another_version_is_refused_in_the_form_of_version_1(address: str, version: int) -> None:
    with RawClient(address) as wire:
        wire.send(b"OBJM", bytes([version]), b"\0\3\0\x10")
        assert wire.reply(MODE_COPY).status == VERSION_MISMATCH
        assert wire.at_end()


@pytest.mark.parametrize(
    "junk", [b"OBJ?\2\0\3\0\x10", b"O" * 70_000, b"OBJM"[:3] + b"\0", b"OPTIONS / HTTP/1.1\r\n\r\n"]
)
def test_a_malformed_hello_gets_a_version_1_error(address: str, junk: bytes) -> None:
    with RawClient(address) as wire:
        wire.send(junk)
        assert wire.reply(MODE_COPY).status == PROTOCOL_ERROR
        assert wire.at_end()


def test_a_second_hello_is_no_frame(two: RawClientV2) -> None:
    two.send(hello())
    two.expect(0)
    assert two.answer().fails(PROTOCOL_ERROR)
    assert two.is_closed()


def test_the_versions_do_not_mix(address: str) -> None:
    with RawClient(address) as wire:
        assert wire.ask(MODE_COPY, "/a").status == OK
        wire.send(hello())
        assert wire.reply(MODE_COPY).status == PROTOCOL_ERROR
        assert wire.at_end()
    with RawClientV2(address) as two:
        two.send(request_one(MODE_COPY, "/a"))
        two.expect(0)
        assert two.answer().fails(PROTOCOL_ERROR)
        assert two.is_closed()


def test_protocol_errors_are_counted(server: Server, transport: str) -> None:
    before = server.statistics().transports[transport].protocol_errors_total
    with RawClientV2(server.addresses[transport]) as two:
        two.send(b"\5")
        two.expect(0)
        assert two.answer().fails(PROTOCOL_ERROR)
    assert server.statistics().transports[transport].protocol_errors_total == before + 1
