"""The transfer's machine in simulated weather: what arrives is right, what it costs, and how it ends where it must."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objmapper_client._udp.path_state import FIRST_WINDOW
from objmapper_client._udp.transfer import MAX_OBJECT, ObjectChanged, Transfer
from objmapper_client.errors import (
    ObjectNotFound,
    RemoteProtocolError,
    RequestTimeout,
    ServerBusy,
    UnsupportedMode,
)
from objmapper_client.protocol.udp import (
    MAX_PIECES,
    MAX_REMOTE_CHUNK,
    Data,
    Error,
    Pull,
    Retry,
    checksum_of_uri,
    decode_request,
    encode_data,
    encode_error,
    encode_retry,
)
from tests.support.network_faults import NetworkFaults
from tests.support.udp_simulation import COOKIE, Server, new_path, run_transfer

URI = "/object"
CONTENT = random.Random(1).randbytes(1 << 20)
NO_FAULTS = NetworkFaults(delay=0.001)


def serving(content: bytes = CONTENT, **how: int | bool) -> Server:
    return Server({URI: content}, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "size",
    [0, 1, MAX_REMOTE_CHUNK - 1, MAX_REMOTE_CHUNK, MAX_REMOTE_CHUNK + 1, 10 * MAX_REMOTE_CHUNK, 100_000, 1 << 20],
)
def test_an_object_arrives_whole_and_nothing_is_sent_twice(size: int) -> None:
    server = serving(CONTENT[:size])
    outcome = run_transfer(server, URI, NO_FAULTS, 0)
    assert outcome.content == CONTENT[:size]
    # 36 bytes of head for each piece.
    assert server.sent == size + 36 * max(1, -(-size // MAX_REMOTE_CHUNK))


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 0), (0, 1), (5000, 70_000), (99_999, 10), (100_000, 1), (10**12, 5)]
)
def test_a_range_is_all_that_travels(offset: int, length: int) -> None:
    server = serving(CONTENT[:100_000])
    outcome = run_transfer(server, URI, NO_FAULTS, 0, offset=offset, length=length)
    assert outcome.content == CONTENT[:100_000][offset : offset + length]
    assert server.sent <= len(outcome.content) + 36 * (len(outcome.content) // MAX_REMOTE_CHUNK + 2)


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.1, 0.3])
def test_it_arrives_through_loss_duplicates_and_reordering(loss: float) -> None:
    faults = NetworkFaults(loss=loss, duplicates=0.05, reordering=0.2, delay=0.001)
    for seed in range(4):
        server = serving(requires_cookie=True)
        outcome = run_transfer(server, URI, faults, seed)
        assert outcome.content == CONTENT
        # What is lost on its way back must be sent again, and some of what is only late.
        assert server.sent < len(CONTENT) * {0.0: 1.2, 0.01: 1.25, 0.1: 1.5, 0.3: 2.5}[loss]


def test_it_arrives_through_damage() -> None:
    """A wrong byte in a PULL asks for something else, one in an answer makes it noise: nothing wrong ever arrives."""
    faults = NetworkFaults(loss=0.02, duplicates=0.05, reordering=0.1, corruption=0.1, delay=0.001)
    for seed in range(6):
        # Neighbours that a damaged URI may name, one letter away.
        objects = {f"/objec{letter}": bytes([letter]) * 300_000 for letter in range(ord("a"), ord("z"))}
        server = Server({**objects, "/object": CONTENT[:300_000]})
        assert run_transfer(server, "/object", faults, seed).content == CONTENT[:300_000]


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        NetworkFaults,
        loss=st.floats(0, 0.25),
        duplicates=st.floats(0, 0.5),
        reordering=st.floats(0, 0.9),
        corruption=st.floats(0, 0.05),
        delay=st.floats(0, 0.2),
        reorder_delay=st.floats(0.0001, 0.3),
    ),
    st.integers(0, 100_000),
    st.integers(1, 2000),
    st.integers(0, 2**32),
)
def test_whatever_the_weather_the_bytes_are_right_or_there_are_none(
    faults: NetworkFaults, size: int, chunk: int, seed: int
) -> None:
    size = min(size, 200 * chunk)
    try:
        found = run_transfer(serving(CONTENT[:size]), URI, faults, seed, path=new_path(chunk)).content
    except (RequestTimeout, ObjectNotFound):
        # Five silences, or two damaged questions in a row, may happen.
        return
    assert found == CONTENT[:size]


def test_a_far_server_makes_smaller_pieces_and_the_path_remembers() -> None:
    path = new_path(32_768)
    for _ in range(2):
        server = serving(max_chunk=MAX_REMOTE_CHUNK)
        assert run_transfer(server, URI, NO_FAULTS, 0, path=path).content == CONTENT
        assert path.chunk == MAX_REMOTE_CHUNK
    for seed in range(20):
        faults = NetworkFaults(loss=0.3, reordering=0.3, delay=0.001)
        server = serving(CONTENT[:50_000], max_chunk=MAX_REMOTE_CHUNK)
        assert run_transfer(server, URI, faults, seed, path=new_path(32_768)).content == CONTENT[:50_000]


def test_a_cookie_is_shown_and_kept() -> None:
    path, server = new_path(), serving(requires_cookie=True)
    run_transfer(server, URI, NO_FAULTS, 0, path=path)
    assert path.cookie == COOKIE
    pulls = server.pulls
    run_transfer(server, URI, NO_FAULTS, 0, path=path, length=1)
    assert server.pulls == pulls + 1


def test_the_window_opens_by_one_a_round_trip_and_closes_by_half() -> None:
    path = new_path()
    run_transfer(serving(), URI, NO_FAULTS, 0, path=path)
    # 911 pieces: 10 + 11 + 12 + … of them in each round trip.
    assert path.window == 44
    run_transfer(serving(), URI, NetworkFaults(loss=0.3, delay=0.001), 1, path=path)
    assert path.window < 10
    narrow = new_path(max_window=3)
    run_transfer(serving(), URI, NO_FAULTS, 0, path=narrow)
    assert narrow.window == 3


def test_round_trips_are_measured() -> None:
    path = new_path()
    run_transfer(serving(), URI, NetworkFaults(delay=0.05), 0, path=path)
    assert path.round_trip == pytest.approx(0.1)
    assert path.idle_timeout == 0.2
    run_transfer(serving(), URI, NetworkFaults(delay=0.2), 0, path=path)
    assert path.idle_timeout == pytest.approx(0.4, abs=0.05)


# What the machine does by itself, question by question.


class SteppedTransfer:
    """A machine with its clock, and what it has sent."""

    def __init__(self, **given: int) -> None:
        self.machine = Transfer(new_path(), URI, **given)
        self.now = 0.0
        self.pulls: list[Pull] = []
        self.look()

    def look(self) -> list[Pull]:
        """What it sends at this moment."""
        sent = []
        for datagram in self.machine.poll_outgoing(self.now):
            pull = decode_request(datagram)
            assert isinstance(pull, Pull)
            sent.append(pull)
        self.pulls += sent
        return sent

    def wait(self) -> list[Pull]:
        """Lets the time pass until it does something by itself."""
        self.now = self.machine.next_timeout()
        return self.look()

    def answer(self, pull: Pull, content: bytes = CONTENT, version: int = 1, total: int | None = None) -> None:
        """Gives it the first piece of a question."""
        payload = content[pull.offset : pull.offset + min(pull.chunk, pull.length)]
        data = Data(pull.request_id, version, len(content) if total is None else total, pull.offset, payload)
        self.machine.feed(encode_data(data, URI), self.now)

    def refuse(self, pull: Pull, status: int, message: str = "words") -> None:
        self.machine.feed(encode_error(Error(pull.request_id, status, message)), self.now)


def test_the_first_question_is_for_a_window() -> None:
    (pull,) = SteppedTransfer().pulls
    assert (pull.offset, pull.length, pull.chunk, pull.cookie) == (
        0,
        FIRST_WINDOW * MAX_REMOTE_CHUNK,
        MAX_REMOTE_CHUNK,
        b"",
    )
    (pull,) = SteppedTransfer(offset=7, length=100).pulls
    assert (pull.offset, pull.length) == (7, 100)


def test_five_silences_end_it_each_twice_as_long() -> None:
    clock, times = SteppedTransfer(), []
    with pytest.raises(RequestTimeout, match="5 tries"):
        while True:
            clock.wait()
            times.append(clock.now)
    assert times == pytest.approx([0.333, 0.999, 2.331, 4.995])
    assert clock.now == pytest.approx(0.333 * 31)
    # One more of each question after every silence, and never a window under two.
    assert [pull.length // MAX_REMOTE_CHUNK for pull in clock.pulls] == [10, *[5] * 2, *[2] * 12]
    assert len({pull.request_id for pull in clock.pulls}) == 15


def test_an_answer_ends_the_silence() -> None:
    clock = SteppedTransfer()
    for _ in range(3):
        clock.wait()
    clock.answer(clock.pulls[-1])
    timeouts = 0
    with pytest.raises(RequestTimeout):
        while True:
            clock.wait()
            timeouts += 1
    assert timeouts >= 4


def test_a_question_that_is_lost_is_asked_again_before_it_is_a_silence() -> None:
    clock = SteppedTransfer()
    clock.now = 0.02
    clock.answer(clock.pulls[0])
    clock.look()
    before = len(clock.pulls)
    # The round trip and four deviations of it, not yet 200 ms.
    clock.wait()
    assert clock.now < 0.2
    assert len(clock.pulls) > before


def test_what_comes_twice_late_or_unasked_changes_nothing() -> None:
    clock = SteppedTransfer()
    clock.answer(clock.pulls[0])
    room = bytearray(len(CONTENT))
    clock.machine.attach(memoryview(room))
    clock.answer(clock.pulls[0])
    stranger = clock.pulls[0]._replace(request_id=clock.pulls[0].request_id + 1000 & 0xFFFFFFFF)
    clock.answer(stranger, content=b"x" * len(CONTENT))
    clock.answer(clock.pulls[0]._replace(offset=MAX_REMOTE_CHUNK + 1))
    assert bytes(room) == CONTENT[:MAX_REMOTE_CHUNK] + bytes(len(CONTENT) - MAX_REMOTE_CHUNK)


def test_another_version_is_reported() -> None:
    clock = SteppedTransfer()
    clock.answer(clock.pulls[0], version=1)
    with pytest.raises(ObjectChanged):
        clock.answer(clock.pulls[0]._replace(offset=MAX_REMOTE_CHUNK), version=2)
    clock = SteppedTransfer(version=5)
    with pytest.raises(ObjectChanged):
        clock.answer(clock.pulls[0], version=1)


def test_two_sizes_of_one_version_are_a_lie() -> None:
    clock = SteppedTransfer()
    clock.answer(clock.pulls[0])
    with pytest.raises(RemoteProtocolError, match="two sizes"):
        clock.answer(clock.pulls[0]._replace(offset=MAX_REMOTE_CHUNK), total=len(CONTENT) + 1)


@pytest.mark.parametrize("length", [0, 1, MAX_REMOTE_CHUNK - 1])
def test_a_piece_that_is_shorter_than_the_size_promised_is_a_lie(length: int) -> None:
    """Not at once: a question that was damaged asks for less."""
    clock = SteppedTransfer()
    clock.answer(clock.pulls[0])
    pull, answers = clock.pulls[0], 0
    with pytest.raises(RemoteProtocolError, match=f"sent {length} bytes of a piece that has {MAX_REMOTE_CHUNK}"):
        while True:
            answers += 1
            clock.answer(pull._replace(offset=MAX_REMOTE_CHUNK, length=length))
            pull = next((found for found in clock.look() if found.offset == MAX_REMOTE_CHUNK), pull)
    assert answers == 3


def test_an_empty_first_piece_of_an_object_that_has_bytes_is_a_lie() -> None:
    clock = SteppedTransfer()
    with pytest.raises(RemoteProtocolError, match="sent 0 bytes"):
        while True:
            clock.answer(clock.pulls[-1]._replace(length=0))
            clock.look()


def test_a_server_that_sends_a_little_less_each_time_does_not_go_on_for_ever() -> None:
    clock, length = SteppedTransfer(), MAX_REMOTE_CHUNK
    with pytest.raises(RemoteProtocolError, match="bytes of a piece that has"):
        while True:
            length -= 1
            for _ in range(2):
                clock.answer(clock.pulls[-1]._replace(length=length))
                clock.look() or clock.wait()
    assert length > MAX_REMOTE_CHUNK - 10


def test_an_object_that_is_too_large_is_refused_with_advice() -> None:
    clock = SteppedTransfer()
    with pytest.raises(UnsupportedMode, match=r"64 MiB.*tcp://"):
        clock.answer(clock.pulls[0], total=MAX_OBJECT + 1)
    clock = SteppedTransfer()
    clock.answer(clock.pulls[0], total=MAX_OBJECT)
    assert clock.machine.size == MAX_OBJECT


def test_an_error_is_believed_when_another_answer_says_the_same() -> None:
    clock = SteppedTransfer()
    clock.refuse(clock.pulls[0], 0x01)
    # The same datagram once more is no second answer.
    clock.refuse(clock.pulls[0], 0x01)
    (again,) = clock.look()
    with pytest.raises(ObjectNotFound, match="/object: words"):
        clock.refuse(again, 0x01)


def test_an_error_that_a_piece_contradicts_is_forgotten() -> None:
    clock = SteppedTransfer()
    clock.refuse(clock.pulls[0], 0x01)
    (again,) = clock.look()
    clock.answer(again)
    clock.refuse(clock.pulls[0], 0x01)
    clock.refuse(again, 0x01)
    # Of an object that was there a moment ago it takes a third.
    with pytest.raises(ObjectNotFound):
        for pull in clock.look():
            clock.refuse(pull, 0x01)


def test_a_server_that_is_busy_at_first_is_reported() -> None:
    clock = SteppedTransfer()
    clock.refuse(clock.pulls[0], 0x14)
    (again,) = clock.look()
    with pytest.raises(ServerBusy):
        clock.refuse(again, 0x14)


def test_a_server_that_is_busy_midway_is_asked_more_slowly_and_reported_in_the_end() -> None:
    clock = SteppedTransfer()
    clock.answer(clock.pulls[0])
    clock.look()
    with pytest.raises(ServerBusy, match="no room"):
        while True:
            for pull in clock.wait():
                clock.refuse(pull, 0x14, "no room")
    assert 1 < clock.now < 10


def test_a_cookie_is_shown_at_once_but_not_for_ever() -> None:
    clock = SteppedTransfer()
    for turn in range(10):
        clock.machine.feed(encode_retry(Retry(clock.pulls[-1].request_id, bytes([turn] * 16))), clock.now)
        clock.look()
    # Three are followed at once; then it is a matter of silences.
    assert [pull.cookie for pull in clock.pulls] == [b"", *(bytes([turn] * 16) for turn in range(3))]
    with pytest.raises(RequestTimeout):
        while True:
            for pull in clock.wait():
                clock.machine.feed(encode_retry(Retry(pull.request_id, bytes([7] * 16))), clock.now)


def test_pieces_that_follow_each_other_are_asked_for_together_and_at_most_thirty_two() -> None:
    path = new_path()
    path.window = 100
    machine = Transfer(path, URI)
    pulls = [decode_request(datagram) for datagram in machine.poll_outgoing(0.0)]
    assert [pull.length // pull.chunk for pull in pulls if isinstance(pull, Pull)] == [32, 32, 32, 4]
    assert all(isinstance(pull, Pull) and pull.length <= MAX_PIECES * MAX_REMOTE_CHUNK for pull in pulls)


@given(st.lists(st.binary(max_size=80), max_size=20), st.integers(0, 2**32 - 1))
def test_no_datagram_from_elsewhere_disturbs_it(noise: list[bytes], number: int) -> None:
    machine = Transfer(new_path(), URI)
    machine.poll_outgoing(0.0)
    for datagram in noise:
        machine.feed(datagram, 0.0)
        machine.feed(b"U\x01\x03\x01" + number.to_bytes(4, "big") + b"\0\0", 0.0)
    assert machine.total is None
    assert not machine.is_done


def test_the_checksum_of_a_piece_is_that_of_its_own_object() -> None:
    assert checksum_of_uri("/a") != checksum_of_uri("/b")
