"""A program: many clients that keep all descriptors, and honest ones, under a small descriptor limit.

``python -m tests.support.fd_exhaustion MODEL DIRECTORY KIND COUNT`` runs it as a user who is not root (root is exempt
from the kernel's limit on descriptors in flight). It prints how many requests of honest clients succeeded, of how many:
half of them on a connection that is kept, half on one that is new. KIND is what the others are: see `KINDS`.
"""

import contextlib
import errno
import os
import resource
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Never

from objmapper_client import Client
from objmapper_client.protocol.hello import Capability
from objmapper_server import Concurrency, Config, Server
from tests.support.raw_client import FDPASS as FDPASS_ONE
from tests.support.raw_client import RawClient, request
from tests.support.raw_client_v2 import COPY, EXTENDED, FDPASS, PLAIN, PUT, PUT_DESCRIPTOR, SPLICE, STAT, RawClientV2

DESCRIPTOR_LIMIT = 1024
REQUESTS = 300
NOBODY_UID = 65534
FDS_PER_MESSAGE = 250


def drop_privileges() -> None:
    """Gives up root, for good, and the right to many descriptors."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTOR_LIMIT, DESCRIPTOR_LIMIT))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY_UID, NOBODY_UID, NOBODY_UID)
        os.setresuid(NOBODY_UID, NOBODY_UID, NOBODY_UID)


def send_without_blocking(v1: RawClient, *messages: bytes, descriptors: list[int] | None = None) -> None:
    """Sends until the server reads no more."""
    v1.socket.setblocking(False)
    try:
        for message in messages:
            if descriptors:
                socket.send_fds(v1.socket, [message], descriptors)
            else:
                v1.socket.sendall(message)
    except (BlockingIOError, ConnectionError):
        pass
    except OSError as error:
        # They are one user here, and have passed as many as the kernel lets a user have in flight.
        if error.errno != errno.ETOOMANYREFS:
            raise


def unread_v1_replies(address: str, root: Path) -> RawClient:
    """Asks for descriptors and never reads them."""
    v1 = RawClient(address)
    send_without_blocking(v1, request(FDPASS_ONE, "/a") * 500)
    return v1


def _connect(address: str, capabilities: Capability) -> RawClientV2:
    """A connection. The server may refuse it for a moment, while it closes descriptors of the connections before."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return RawClientV2(address, capabilities)
        except (AssertionError, EOFError, ConnectionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _asks_for(operation: object, uri: str, capabilities: Capability = EXTENDED) -> Callable[[str, Path], RawClient]:
    def connect_and_ask(address: str, root: Path) -> RawClient:
        v2 = _connect(address, capabilities)
        send_without_blocking(v2, b"".join(v2.encode(operation, uri) for _ in range(500)))  # type: ignore[arg-type]
        return v2

    return connect_and_ask


def stalled_puts(address: str, root: Path) -> RawClient:
    """Writes that are complete, as many as go, and one whose content never comes to an end."""
    v2 = RawClientV2(address)
    uri = f"/stopped-{v2.socket.fileno()}"
    complete_puts = b"".join(v2.encode(PUT, uri, content_len=100) + bytes(100) for _ in range(100))
    send_without_blocking(v2, complete_puts, v2.encode(PUT, uri, content_len=1 << 20) + bytes(1000))
    return v2


def incomplete_puts(address: str, root: Path) -> RawClient:
    """A write that is complete, and one of which nothing but the request ever comes."""
    v2 = RawClientV2(address)
    uri = f"/begun-{v2.socket.fileno()}"
    send_without_blocking(v2, v2.encode(PUT, uri, content_len=100) + bytes(100), v2.encode(PUT, uri, content_len=100))
    return v2


def puts_by_descriptor(address: str, root: Path) -> RawClient:
    """Writes of files that are passed along, as many as go, of which no answer is read."""
    v2 = RawClientV2(address)
    uri = f"/passed-{v2.socket.fileno()}"
    with (root / "a").open("rb") as file:
        for _ in range(10):
            requests = b"".join(v2.encode(PUT_DESCRIPTOR, uri) for _ in range(25))
            send_without_blocking(v2, requests, descriptors=[file.fileno()] * 25)
    return v2


def passes_unused_descriptors(address: str, root: Path) -> RawClient:
    """Passes descriptors that no put goes with, and begins a frame that it does not end."""
    v2 = RawClientV2(address)
    with (root / "a").open("rb") as file:
        for _ in range(10):
            send_without_blocking(v2, v2.encode(STAT, "/a"), descriptors=[file.fileno()] * FDS_PER_MESSAGE)
        incomplete_request = v2.encode(PUT_DESCRIPTOR, "/target")[:-1]
        send_without_blocking(
            v2, *(bytes([byte]) for byte in incomplete_request), descriptors=[file.fileno()] * FDS_PER_MESSAGE
        )
    return v2


#: What those who take can be. In "mixed" there are some of each.
KINDS: dict[str, Callable[[str, Path], RawClient]] = {
    "version-1": unread_v1_replies,
    "extended": _asks_for(FDPASS, "/a"),
    "plain": _asks_for(FDPASS, "/a", PLAIN),
    "copies": _asks_for(COPY, "/large"),
    "splices": _asks_for(SPLICE, "/large"),
    "puts-that-stop": stalled_puts,
    "puts-that-begin": incomplete_puts,
    "puts-by-descriptor": puts_by_descriptor,
    "passes-for-nothing": passes_unused_descriptors,
}


def serve(config: Config, ready: int, end: int) -> Never:
    """Serves in a process of its own until `end` is closed: its limit is not its clients'."""
    status = 1
    try:
        with Server(config):
            os.write(ready, b".")
            os.read(end, 1)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


@contextlib.contextmanager
def served(config: Config) -> Iterator[str]:
    """A server in a process of its own. Its address."""
    (is_ready, ready), (end, hold) = os.pipe(), os.pipe()
    server_process = os.fork()
    if server_process == 0:
        os.close(hold)
        serve(config, ready, end)
    os.close(ready)
    assert os.read(is_ready, 1), "the server did not start"
    yield f"unix:{config.unix}"
    os.close(hold)
    _, status = os.waitpid(server_process, 0)
    assert status == 0, "the server did not end in order"


def main(model: str, directory: Path, kind: str, count: int) -> None:
    """Loads the server with hoarders, then asks as an honest client."""
    root = directory / "root"
    root.mkdir()
    root.chmod(0o777)
    (root / "a").write_bytes(b"a")
    (root / "large").write_bytes(bytes(1 << 20))
    directory.chmod(0o777)
    drop_privileges()
    config = Config(root=root, unix=directory / "o.sock", concurrency_model=Concurrency(model), writable=True)
    kinds = list(KINDS.values()) if kind == "mixed" else [KINDS[kind]]
    with served(config) as address:
        greedy_clients = [kinds[number % len(kinds)](address, root) for number in range(count)]
        succeeded = 0
        # A client as programs use it: it asks a server that is busy for a moment again, three times in all.
        with Client(address, timeout=5) as honest:
            for number in range(REQUESTS):
                if number % 10 == 0:
                    honest.put("/honest", b"%d" % number)
                mode: Literal["fdpass", "copy"] = "fdpass" if number % 2 else "copy"
                if number % 4 < 2:
                    succeeded += honest.read("/a", mode=mode) == b"a"
                    continue
                with Client(address, timeout=5) as other:
                    succeeded += other.read("/a", mode=mode) == b"a"
        for greedy_client in greedy_clients:
            greedy_client.close()
    print(f"{succeeded} of {REQUESTS}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
