"""The clients of the lifecycle soak that check each response: readers of constant objects, and writers."""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from objmapper_client import Client, ConnectionFailed, DescriptorLimit, ObjectNotFound, OutcomeUnknown, ServerBusy

#: The constant objects, with their contents.
CONTENTS = {"/small": b"small", "/large": b"large" * 40_000}
#: Seconds that a request may take, and that a client may need to end.
LIMIT = 60.0
#: One write of this number is a delete.
DELETES = 5


class Clients:
    """Readers and writers, each in a thread with a connection."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self.counts = Counter[str]()
        self.wrong: list[str] = []
        #: The process has no descriptors: a request may fail, of the client's too, and no answer may be wrong.
        self.may_fail = threading.Event()
        #: The server drains or stops: its clients end with the first request that fails.
        self.is_ending = threading.Event()
        self._ended = threading.Event()
        self._udp_ended = threading.Event()
        #: For each writer what its object may be now, once it has ended: contents, or None where there may be none.
        self.written: dict[str, list[bytes | None]] = {}
        self._threads: list[threading.Thread] = []
        for transport, address in addresses.items():
            for name in CONTENTS:
                self._begin(address, self._reader(name), transport)
            if transport != "udp":
                self._begin(address, self._writer(f"/written-{transport}"), transport)

    def _begin(self, address: str, step: Callable[[Client], None], transport: str) -> None:
        ended = self._udp_ended if transport == "udp" else self._ended
        # Made here, where there are descriptors for what it imports.
        client = Client(address, timeout=LIMIT)
        thread = threading.Thread(target=self._run, args=(client, step, ended), name=f"{transport} client")
        thread.start()
        self._threads.append(thread)

    def _run(self, client: Client, step: Callable[[Client], None], ended: threading.Event) -> None:
        name = threading.current_thread().name
        with client:
            while not ended.is_set():
                # It failed in that time, though it is over when that shows.
                may_fail = self.may_fail.is_set()
                try:
                    step(client)
                except (ConnectionFailed, DescriptorLimit, OutcomeUnknown, ServerBusy, OSError) as error:
                    if self.is_ending.is_set():
                        return
                    if not (may_fail or self.may_fail.is_set()):
                        self.wrong.append(f"{name}: {error!r}")
                        return
                    self.counts["requests without descriptors that failed"] += 1
                    ended.wait(0.01)
                except Exception as error:
                    self.wrong.append(f"{name}: {error!r}")
                    raise

    def _reader(self, name: str) -> Callable[[Client], None]:
        def step(client: Client) -> None:
            if client.read(name) != CONTENTS[name]:
                self.wrong.append(f"{name}: another content")
            self.counts["reads"] += 1

        return step

    def _writer(self, name: str) -> Callable[[Client], None]:
        version = 0
        # One of these is there.
        possible: list[bytes | None] = self.written.setdefault(name, [None])

        def step(client: Client) -> None:
            nonlocal version
            version += 1
            content = None if version % DELETES == 0 else b"%d " % version * (1 + version * 997 % 20_000)
            # From here on it may be so, whatever becomes of the request.
            possible.append(content)
            try:
                if content is None:
                    client.delete(name)
                else:
                    client.put(name, content)
            except ObjectNotFound:
                if None not in possible[:-1]:
                    self.wrong.append(f"{name}: lost before it was deleted")
            possible[:] = [content]
            self.counts["writes"] += 1
            try:
                found = client.read(name)
            except ObjectNotFound:
                found = None
            if found != content:
                self.wrong.append(f"{name}: not what was written last")
            self.counts["reads"] += 1

        return step

    def end_udp(self) -> None:
        """End the clients that would not notice the end of their server, which has no connection to them."""
        self._udp_ended.set()
        self._join([thread for thread in self._threads if thread.name.startswith("udp")])

    def end(self, root: Path) -> None:
        """End all of them, and compare what is in the root with what they have written."""
        self._ended.set()
        self._udp_ended.set()
        self._join(self._threads)
        for name, possible in self.written.items():
            place = root / name[1:]
            if (place.read_bytes() if place.exists() else None) not in possible:
                self.wrong.append(f"{name}: the root has not what was written last")
            place.unlink(missing_ok=True)
        self.written.clear()

    def _join(self, threads: list[threading.Thread]) -> None:
        for thread in threads:
            thread.join(LIMIT)
            if thread.is_alive():
                self.wrong.append(f"a request of {thread.name} has no end")
