"""How a connection of version 2 begins, and what is refused before it has."""

import pytest

from objmapper_client.protocol.hello import Capability
from objmapper_server import Server
from tests.support.raw_client import COPY as MODE_COPY
from tests.support.raw_client import INVALID_MODE, OK, PROTOCOL_ERROR, RawClient
from tests.support.raw_client import request as request_one
from tests.support.raw_client_v2 import COPY, EXTENDED, FDPASS, PLAIN, STAT, VERSION_MISMATCH, RawClientV2, frame, hello


@pytest.mark.parametrize(
    ("offered", "agreed"),
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
def test_in_force_is_what_both_can(address: str, offered: int, agreed: int) -> None:
    with RawClientV2(address, offered) as v2:
        assert v2.ack.capabilities == agreed
        assert v2.call(COPY, "/a").status == OK


@pytest.mark.parametrize(("offered", "agreed"), [(0, 1), (1, 1), (7, 7), (999, 999), (1000, 1000), (65535, 1000)])
def test_the_smaller_pipeline_counts(address: str, offered: int, agreed: int) -> None:
    with RawClientV2(address, EXTENDED, offered) as v2:
        assert v2.ack.max_pipeline == agreed
        assert v2.ack.backend_parallelism >= 1


def test_the_documented_bytes(unix: str) -> None:
    with RawClientV2(unix, PLAIN, 16) as v2:
        assert v2.ack == (PLAIN, 16, v2.ack.backend_parallelism)
        v2.send(bytes.fromhex("01 00000007 00 32 0002 2f61"))
        assert v2.take(17)[:14] == bytes.fromhex("02 00000007 00 0000000000000001")
    with RawClientV2(unix, EXTENDED) as v2:
        v2.send(bytes.fromhex("01 00000008 80 32 0002 2f61  0016  81 0008 0000000000000005  82 0008 000000000000000a"))
        v2.expect(8)
        assert v2.answer().read() == b""


@pytest.mark.parametrize("capabilities", [PLAIN, EXTENDED], ids=["plain", "extended"])
def test_hello_and_requests_may_come_byte_by_byte(address: str, capabilities: int) -> None:
    with RawClientV2.__new__(RawClientV2) as v2:
        RawClient.__init__(v2, address)
        for byte in hello(capabilities):
            v2.send(bytes([byte]))
        v2.read_hello_ack()
        for byte in v2.encode(COPY, "/a") + v2.encode(COPY, "/directory/nested é"):
            v2.send(bytes([byte]))
        assert v2.answer().content_len == 1
        assert v2.answer().read() == b"nested"


def test_hello_and_requests_may_come_in_one_packet(server: Server, transport: str) -> None:
    with RawClientV2.__new__(RawClientV2) as v2:
        RawClient.__init__(v2, server.addresses[transport])
        requests = b"".join(frame(number, b"2", b"/a") for number in range(100))
        v2.send(hello() + requests + frame(100, b"s", b"/a", parameters=b"") + frame(101, b"1", b"/a"))
        v2.read_hello_ack()
        for number in range(100):
            v2.expect(number)
        v2.expect(100, STAT)
        v2.expect(101, FDPASS)
        found = v2.answers(102)
        assert [found[number].content_len for number in range(100)] == [1] * 100
        assert found[100].metadata.size == 1
        assert found[101].read() if transport == "unix" else found[101].fails(INVALID_MODE)


@pytest.mark.parametrize("version", [0, 1, 3, 255])
def test_another_version_is_refused_in_the_form_of_version_1(address: str, version: int) -> None:
    with RawClient(address) as v1:
        v1.send(b"OBJM", bytes([version]), b"\0\3\0\x10")
        assert v1.reply(MODE_COPY).status == VERSION_MISMATCH
        assert v1.at_end()


@pytest.mark.parametrize(
    "junk", [b"OBJ?\2\0\3\0\x10", b"O" * 70_000, b"OBJM"[:3] + b"\0", b"OPTIONS / HTTP/1.1\r\n\r\n"]
)
def test_a_malformed_hello_gets_a_version_1_error(address: str, junk: bytes) -> None:
    with RawClient(address) as v1:
        v1.send(junk)
        assert v1.reply(MODE_COPY).status == PROTOCOL_ERROR
        assert v1.at_end()


def test_a_second_hello_is_no_frame(v2: RawClientV2) -> None:
    v2.send(hello())
    v2.expect(0)
    assert v2.answer().fails(PROTOCOL_ERROR)
    assert v2.is_closed()


def test_the_versions_do_not_mix(address: str) -> None:
    with RawClient(address) as v1:
        assert v1.ask(MODE_COPY, "/a").status == OK
        v1.send(hello())
        assert v1.reply(MODE_COPY).status == PROTOCOL_ERROR
        assert v1.at_end()
    with RawClientV2(address) as v2:
        v2.send(request_one(MODE_COPY, "/a"))
        v2.expect(0)
        assert v2.answer().fails(PROTOCOL_ERROR)
        assert v2.is_closed()


def test_protocol_errors_are_counted(server: Server, transport: str) -> None:
    before = server.statistics().transports[transport].protocol_errors_total
    with RawClientV2(server.addresses[transport]) as v2:
        v2.send(b"\5")
        v2.expect(0)
        assert v2.answer().fails(PROTOCOL_ERROR)
    assert server.statistics().transports[transport].protocol_errors_total == before + 1
