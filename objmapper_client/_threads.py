"""How threads wait: in the call that reads, in poll(2), or for one another. The only module that knows threads' waiting.

A shared connection has no thread of its own. Whoever waits for an answer while nobody reads becomes the reader: it gives
each answer to the one that asked, and with its own in hand leaves the reading to the next that waits.
"""

import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

from objmapper_client._ask import Ask
from objmapper_client._multiplex import Multiplex, NoRoom
from objmapper_client._steps import Call, Progress, Pull, Steps, T, Wait
from objmapper_client._transport import CHUNK, CLOEXEC, CONTROL, NOTHING, Connection, broken, too_late
from objmapper_client.errors import ConnectionFailed, LocalProtocolError, ObjmapperError

_now = time.monotonic
# How much longer than it should a thread may sleep in the socket, whose own time limit is that of a whole request.
_SLACK = 0.05


class Gate:
    """What one thread waits at until another opens it."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def open(self) -> None:
        """Lets the one who waits go on. Can be called twice."""
        if self._lock.locked():
            try:
                self._lock.release()
            except RuntimeError:  # another thread was quicker
                return

    def wait(self, seconds: float) -> bool:
        """Whether it was opened in time."""
        return self._lock.acquire(timeout=max(0.0, seconds))


def run(steps: Steps[T], timeout: float) -> T:
    """Runs the steps in this thread; after `timeout` seconds they are told that the time is up."""
    deadline = _now() + timeout
    try:
        wish = next(steps)
        while True:
            try:
                if type(wish) is Ask:
                    came: Any = wish.multiplex.exchange(wish, deadline)
                elif type(wish) is Progress:
                    deadline = _now() + timeout + wish.seconds
                    came = True
                else:
                    came = _grant(wish, deadline)
            except BaseException as error:
                wish = steps.throw(error)
            else:
                wish = steps.send(came)
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        steps.close()


def _grant(wish: object, deadline: float) -> Any:
    match wish:
        case Wait():
            return _wait(wish, deadline)
        case Gate():
            return wish.wait(deadline - _now())
        case list():
            return _exchange_all(wish, deadline)
        case Call():
            return wish.function()
        case Pull():
            assert isinstance(wish.source, Iterator)
            return next(wish.source, None)
    raise AssertionError(wish)


def _wait(wait: Wait, deadline: float) -> Any:
    left = deadline - _now()
    if wait.most is not None:
        left = min(left, wait.most)
    if left <= 0:
        return False
    if wait.host is not None:
        return _look_up(wait.host, wait.port)
    if wait.seconds is not None:
        if wait.seconds:
            time.sleep(min(left, wait.seconds))
        return True
    # Rounded up: waking too early would be one more round.
    return bool(_poll(wait).poll(left * 1000 + 1))


def _look_up(host: str, port: int) -> Any:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        return error


def _poll(wait: Wait) -> Any:
    if wait.poll is None:
        wait.poll = select.poll()
        wait.poll.register(wait.descriptor, select.POLLOUT if wait.writable else select.POLLIN)
    return wait.poll


class ThreadMultiplex(Multiplex):
    """A connection that threads share."""

    def __init__(self, connection: Connection, timeout: float) -> None:
        super().__init__(connection, threading.Lock())
        #: Seconds that the socket itself waits.
        self._sleep = timeout
        self._sleep_in_socket()
        self._reader: Ask | None = None
        #: Those who wait while another reads, the longest first.
        self._followers: dict[Ask, Gate] = {}
        self._recvmsg = connection.socket.recvmsg
        self._recv = connection.socket.recv
        self._is_unix = connection.is_unix

    def _sleep_in_socket(self) -> None:
        """A reader sleeps in the call that reads rather than in a poll before it.

        One system call and one wake-up less a request: 20 µs of 50.
        """
        sock = self.connection.socket
        sock.setblocking(True)
        seconds = max(self._sleep, 1e-3)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6)))

    def exchange(self, ask: Ask, deadline: float) -> None:
        """Sends a request and waits for its answer. Raises ConnectionFailed, RequestTimeout, RemoteProtocolError."""
        self.start((ask,), deadline)
        self.wait(ask, deadline)

    def start(self, asks: "tuple[Ask, ...] | list[Ask]", deadline: float) -> None:
        """Sends requests, or has them sent by those who wait for answers. What cannot be sent is failed."""
        left = deadline - _now()
        with self.lock:
            for ask in asks:
                try:
                    self.queue(ask, self.add(ask, left))
                except (NoRoom, LocalProtocolError) as error:
                    ask.fail(error)
            try:
                self.flush()
            except ConnectionFailed as error:
                self._wake(self.fail(error))

    def wait(self, ask: Ask, deadline: float) -> None:
        """Waits for the answer of a request that was started."""
        try:
            while not ask.is_done:
                with self.lock:
                    if ask.is_done:
                        break
                    gate = None
                    if self._reader is None:
                        self._reader = ask
                    else:
                        gate = self._followers[ask] = Gate()
                if gate is None:
                    self._read(ask, deadline)
                elif not gate.wait(deadline - _now()):
                    with self.lock:
                        self._leave(ask)
                        if not ask.is_done:
                            raise too_late(self.connection.address)
        except BaseException:
            with self.lock:
                self._leave(ask)
                ask.drop()
            raise
        if ask.failure is not None:
            raise ask.failure

    def _leave(self, ask: Ask) -> None:
        """Whoever waited at a gate waits no longer; where the reading was left to it, it goes to the next."""
        if self._followers.pop(ask, None) is None:
            self._hand_over()

    def _hand_over(self) -> None:
        if self._reader is None and self._followers:
            _, gate = self._followers.popitem() if len(self._followers) == 1 else self._first_follower()
            gate.open()

    def _first_follower(self) -> tuple[Ask, Gate]:
        ask = next(iter(self._followers))
        return ask, self._followers.pop(ask)

    def _read(self, ask: Ask, deadline: float) -> None:
        """Reads until this request has its answer."""
        try:
            while not ask.is_done:
                left = deadline - _now()
                if self.outgoing or left < self._sleep - _SLACK:
                    if not self._ready(left):
                        if deadline - _now() <= 0:
                            raise too_late(self.connection.address)
                        continue
                ancillary, flags = NOTHING
                try:
                    if self._is_unix:
                        data, ancillary, flags, _ = self._recvmsg(CHUNK, CONTROL, CLOEXEC)
                    else:
                        data = self._recv(CHUNK)
                except BlockingIOError:
                    # The socket's own time is up.
                    if deadline - _now() <= 0:
                        raise too_late(self.connection.address) from None
                    continue
                except OSError as error:
                    with self.lock:
                        self._wake(self.fail(broken(self.connection.address, error)))
                    return
                with self.lock:
                    self._wake(self.arrived(data, ancillary, flags))
        except ObjmapperError:
            raise
        except BaseException:
            # A signal's handler has raised: what was read in that moment is lost.
            with self.lock:
                self._wake(self.fail(ConnectionFailed(f"{self.connection.address}: the reading was interrupted")))
            raise
        finally:
            with self.lock:
                self._reader = None
                self._hand_over()

    def _ready(self, left: float) -> bool:
        """Waits until there is something to read, and sends what is left to be sent. Whether there is."""
        descriptor = self.connection.socket.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN | (select.POLLOUT if self.outgoing else 0))
        found = poll.poll(max(0.0, left * 1000 + 1))
        events = found[0][1] if found else 0
        if events & select.POLLOUT:
            with self.lock:
                try:
                    self.flush()
                except ConnectionFailed as error:
                    self._wake(self.fail(error))
                    return False
        return bool(events & ~select.POLLOUT)

    def _wake(self, finished: list[Ask]) -> None:
        followers = self._followers
        if followers:
            for ask in finished:
                gate = followers.pop(ask, None)
                if gate is not None:
                    gate.open()


class Threads:
    """What a pool of connections needs to know of those who wait."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout

    def gate(self) -> Gate:
        """What one waits at until another opens it."""
        return Gate()

    def share(self, connection: Connection) -> Multiplex:
        """Has requests share a connection."""
        return ThreadMultiplex(connection, self._timeout)

    def is_readable(self, connection: Connection) -> bool:
        """Whether there is something to read at this moment."""
        return bool(_poll(connection.readable).poll(0))


def _exchange_all(asks: list[Ask], deadline: float) -> None:
    """Sends requests of one connection ahead, and waits for all. Errors are left with those that they concern."""
    multiplex: ThreadMultiplex = asks[0].multiplex
    multiplex.start(asks, deadline)
    for ask in asks:
        try:
            multiplex.wait(ask, deadline)
        except (ObjmapperError, NoRoom) as error:
            ask.failure = error
