"""How threads wait: in the call that reads, in poll(2), or for one another. Nothing else here knows how.

The shared connection has no thread of its own. Whoever waits for an answer while nobody reads becomes the reader: it
gives each answer to the one that asked, and with its own in hand leaves the reading to another that waits.
"""

import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from objmapper_client._ask import Ask, Single, Verb
from objmapper_client._lines import answered
from objmapper_client._multiplex import Multiplex, NoRoom
from objmapper_client._pool import Pool
from objmapper_client._steps import Call, Progress, Pull, Steps, T, Wait
from objmapper_client._transport import AT_ONCE, CHUNK, CLOEXEC, CONTROL, NOTHING, Connection, broken, too_late
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
        """Lets the one who waits go on. To be called once."""
        self._lock.release()

    def wait(self, seconds: float) -> bool:
        """Whether it was opened in time."""
        return self._lock.acquire(timeout=max(0.0, seconds))


def run(pool: Pool, verb: Verb[T], deadline: float = 0) -> T:
    """Runs a verb in this thread; after the pool's timeout it is told that the time is up."""
    is_fresh = not deadline
    deadline = deadline or _now() + pool.timeout
    if isinstance(verb, Single):
        # Where the server is known to have no connection that requests share, the way by it is a detour.
        if pool.version != 1 and _answer(pool, verb, deadline, is_fresh=is_fresh):
            return verb.result()
        verb = verb.otherwise(pool)
    return _run(pool, verb, deadline)


def _run(pool: Pool, steps: Steps[T], deadline: float) -> T:
    try:
        wish = next(steps)
        while True:
            try:
                if isinstance(wish, Ask):
                    came: Any = _answer(pool, wish, deadline)
                elif isinstance(wish, Progress):
                    deadline = _now() + pool.timeout + wish.seconds
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


def _answer(pool: Pool, ask: Ask, deadline: float, *, is_fresh: bool = False) -> bool:
    """Has a request answered: at once where nothing stands in the way, which is what is fast here.

    Where `is_fresh`, all of its time is left.
    """
    trouble: Exception | None = None
    if not pool.is_waited_for and isinstance(shared := pool.shared, ThreadMultiplex):
        try:
            shared.exchange(ask, deadline, is_fresh)
            if ask.status == 0:
                pool.requests += 1
                return True
        except (NoRoom, ConnectionFailed) as error:
            trouble = error
        finally:
            if pool.is_waited_for:
                pool.answered()
    return _run(pool, answered(pool, ask, trouble), deadline)


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
        case Pull(source=Iterator() as pieces):
            return next(pieces, None)
    raise TypeError(f"nobody here waits for {wish!r}: an async iterator is for AsyncClient")


def _exchange_all(asks: list[Ask], deadline: float) -> None:
    """Sends requests of one connection ahead, and waits for all. Errors are left with those that they concern."""
    multiplex: ThreadMultiplex = asks[0].multiplex
    multiplex.start(asks, deadline)
    for ask in asks:
        try:
            multiplex.wait(ask, deadline)
        except (ObjmapperError, NoRoom) as error:
            ask.failure = error


def _wait(wait: Wait, deadline: float) -> Any:
    left = deadline - _now()
    if wait.most is not None:
        left = min(left, wait.most)
    if left <= 0:
        return False
    if wait.host is not None:
        return _look_up(wait.host, wait.port)
    if wait.seconds is not None:
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


class Threads:
    """What a pool of connections needs to know of those who wait."""

    loop = None

    def gate(self) -> Gate:
        """What one waits at until another opens it."""
        return Gate()

    def share(self, connection: Connection, timeout: float, _: Callable[[], None]) -> "ThreadMultiplex":
        """Has requests share a connection. Whoever reads tells the pool itself."""
        return ThreadMultiplex(connection, timeout)

    def is_readable(self, connection: Connection) -> bool:
        """Whether there is something to read at this moment."""
        return bool(_poll(connection.readable).poll(0))


class ThreadMultiplex(Multiplex):
    """A connection that threads share."""

    def __init__(self, connection: Connection, timeout: float) -> None:
        super().__init__(connection, threading.Lock(), timeout)
        self._patience = timeout - _SLACK
        self._reader: Ask | None = None
        #: Those who wait while another reads, the longest first.
        self._followers: dict[Ask, Gate] = {}
        self._send = connection.socket.send
        self._recvmsg = connection.socket.recvmsg
        self._recv = connection.socket.recv
        self._is_unix = connection.is_unix
        self._sleep_in_socket()

    def _sleep_in_socket(self) -> None:
        """A reader sleeps in the call that reads rather than in a poll before it.

        One system call and one wake-up less a request: 20 µs of 50.
        """
        sock = self.connection.socket
        sock.setblocking(True)
        seconds = max(self._timeout, 1e-3)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6)))

    def exchange(self, ask: Ask, deadline: float, is_fresh: bool = False) -> None:
        """Sends a request and waits for its answer.

        Raises NoRoom, LocalProtocolError, ConnectionFailed, RequestTimeout, RemoteProtocolError, DescriptorLimit.
        """
        # Where time is short, the socket's own limit is too long.
        must_look = not is_fresh and deadline - _now() < self._patience
        try:
            with self.lock:
                if self.outgoing:
                    self.queue(ask, self._timeout)
                    frame = b""
                else:
                    frame = self.enter(ask, self._timeout)
                is_reader = self._reader is None
                if is_reader:
                    self._reader = ask
                try:
                    sent = self._send(frame, AT_ONCE) if frame else -1
                except OSError:
                    # It is met again, and told apart.
                    sent = 0
                # From here to the call that sleeps every step counts: the server's thread, which the send has woken up,
                # runs on this core as soon as this one sleeps, and else has another core woken up: 20 µs instead of 2.
                if sent != len(frame):
                    if frame:
                        self.outgoing.append(frame[sent:])
                    self._send_queued()
                    must_look = True
        except (NoRoom, LocalProtocolError):
            raise
        except BaseException:
            self._interrupted()
            raise
        try:
            if is_reader:
                self._read(ask, deadline, must_look)
            else:
                self._wait(ask, deadline)
        except BaseException:
            self._abandon(ask)
            raise
        if ask.failure is not None:
            raise ask.failure

    def start(self, asks: list[Ask], deadline: float) -> None:
        """Sends requests, or has them sent by those who wait for answers. What cannot be sent is failed."""
        left = deadline - _now()
        try:
            with self.lock:
                for ask in asks:
                    try:
                        self.queue(ask, left)
                    except (NoRoom, LocalProtocolError) as error:
                        ask.failure, ask.is_done = error, True
                self._send_queued()
        except BaseException:
            self._interrupted()
            raise

    def wait(self, ask: Ask, deadline: float) -> None:
        """Waits for the answer of a request that was started."""
        try:
            self._wait(ask, deadline)
        except BaseException:
            self._abandon(ask)
            raise
        if ask.failure is not None:
            raise ask.failure

    def _send_queued(self) -> None:
        try:
            self.flush()
        except ConnectionFailed as error:
            self._wake(self.fail(error))

    def _interrupted(self) -> None:
        """A signal's handler has raised in the midst of things: what was sent or read in that moment is lost."""
        with self.lock:
            self._wake(self.fail(ConnectionFailed(f"{self.connection.address}: a signal interrupted the exchange")))

    def _abandon(self, ask: Ask) -> None:
        with self.lock:
            self._leave(ask)
            ask.drop()
            ask.is_late = True

    def _wait(self, ask: Ask, deadline: float) -> None:
        """Waits while another reads, or does the reading."""
        while not ask.is_done:
            with self.lock:
                if ask.is_done:
                    return
                gate = None
                if self._reader is None:
                    self._reader = ask
                else:
                    gate = self._followers[ask] = Gate()
            if gate is None:
                self._read(ask, deadline, must_look=True)
            elif not gate.wait(deadline - _now()) and not ask.is_done:
                raise too_late(self.connection.address)

    def _read(self, ask: Ask, deadline: float, must_look: bool) -> None:
        """Reads until this request has its answer, then leaves the reading to another."""
        ancillary, flags = NOTHING
        while not ask.is_done:
            if must_look and not self._ready(deadline):
                continue
            try:
                if self._is_unix:
                    data, ancillary, flags, _ = self._recvmsg(CHUNK, CONTROL, CLOEXEC)
                else:
                    data = self._recv(CHUNK)
                with self.lock:
                    if not self.arrived_alone(ask, data, ancillary, flags):
                        self._wake(self.arrived(data, ancillary, flags))
                    if ask.is_done:
                        self._reader = None
                        if self._followers:
                            self._hand_over()
                        return
            except BlockingIOError:
                # The socket's own time is up.
                must_look = True
                continue
            except OSError as error:
                with self.lock:
                    self._wake(self.fail(broken(self.connection.address, error)))
                    self._leave(ask)
                return
            except BaseException:
                self._interrupted()
                raise
            must_look = bool(self.outgoing) or deadline - _now() < self._patience

    def _ready(self, deadline: float) -> bool:
        """Waits until there is something to read, and sends what is left to be sent. Whether there is."""
        left = deadline - _now()
        if left <= 0:
            raise too_late(self.connection.address)
        poll = select.poll()
        poll.register(self.connection.socket, select.POLLIN | (select.POLLOUT if self.outgoing else 0))
        found = poll.poll(left * 1000 + 1)
        events = found[0][1] if found else 0
        if events & select.POLLOUT:
            with self.lock:
                self._send_queued()
        return bool(events & ~select.POLLOUT)

    def _leave(self, ask: Ask) -> None:
        """Whoever waited waits no longer; where the reading was left to it, it goes to the next."""
        if self._reader is ask:
            self._reader = None
        self._followers.pop(ask, None)
        self._hand_over()

    def _hand_over(self) -> None:
        """Has the one that waits the longest do the reading, unless somebody does."""
        if self._reader is None and self._followers:
            ask = next(iter(self._followers))
            self._followers.pop(ask).open()

    def _wake(self, finished: list[Ask]) -> None:
        for ask in finished:
            gate = self._followers.pop(ask, None)
            if gate is not None:
                gate.open()
