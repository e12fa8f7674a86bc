"""Checks that reads and writes are linearizable: each happens at one moment between request and reply.

    python -m benchmarks.soak.linearizability [--operations 1000000] [--clients 16] [--model MODEL …] [--seed 1]

Each object has one client that writes it: versions by number, each with content of its own kind and length, and
deletes. All clients read all objects, by descriptor, copy and splice, over Unix and TCP, one request at a time; the
server keeps small objects in memory, as it does by default. Then the program checks every object's history. With one
writer an object is linearizable if and only if (Lamport, "On interprocess communication", 1986, his atomic register):

* no read returns a version whose write began after the read had ended;
* no read returns a version that another had replaced before the read began;
* no read returns an older version than another read that had ended before it began.

Each read must also return one complete version. Ends with 1 if one of these fails.
"""

import argparse
import heapq
import multiprocessing
import os
import random
import sys
import tempfile
import time
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from tqdm import tqdm

from benchmarks.soak.process_resources import ProcessResources
from objmapper_client.protocol.v2_requests import Operation
from objmapper_server import Concurrency
from tests.support.models import MODELS
from tests.support.raw_client import NOT_FOUND, OK
from tests.support.raw_client_v2 import COPY, DELETE, FDPASS, SPLICE, RawClientV2
from tests.support.server_process import ServerProcess

MODES: Final = (FDPASS, COPY, SPLICE)
MODES_OF_STREAMS: Final = (COPY, SPLICE)
OBJECTS: Final = 64
#: Up to what is kept in memory, and beyond what is copied beside its head.
LENGTHS: Final = (8, 100, 4096, 70_000)
#: One operation of this number is a write; one write of this number is a delete.
WRITES, DELETES = 6, 8
#: What a read of nothing brought, and what no version is.
NOTHING, TORN = -1, -2
FIELDS: Final = 5


class CompletedOperation(NamedTuple):
    """An operation: the version that it wrote, deleted or read, and when it began and ended (ns, monotonic)."""

    object: int
    kind: int
    version: int
    began: int
    ended: int


READ, PUT, DELETED = range(3)


def content_of(object_: int, version: int) -> bytes:
    """The content of a version: its number again and again."""
    number = (object_ << 40 | version).to_bytes(8, "big")
    return number * (LENGTHS[version % len(LENGTHS)] // 8)


def version_of(object_: int, content: bytes) -> int:
    """The version that a content is, `TORN` where it is none."""
    version = int.from_bytes(content[:8], "big") & ((1 << 40) - 1)
    return version if content == content_of(object_, version) else TORN


class Client:
    """One client: writes its own objects, reads all."""

    def __init__(self, addresses: dict[str, str], number: int, clients: int, seed: int) -> None:
        self._addresses = addresses
        self._own = range(number, OBJECTS, clients)
        self._versions = dict.fromkeys(self._own, 0)
        self._generator = random.Random(seed << 8 | number)

    def run(self, operations: int, log: Path) -> None:
        """Runs this number of operations, and writes them to a file."""
        done = array("q")
        with RawClientV2(self._addresses["unix"]) as unix, RawClientV2(self._addresses["tcp"]) as tcp:
            for _ in range(operations):
                v2, modes = (unix, MODES) if self._generator.random() < 0.7 else (tcp, MODES_OF_STREAMS)
                if self._own and self._generator.randrange(WRITES) == 0:
                    done.extend(self._write(v2))
                else:
                    done.extend(self._read(v2, self._generator.choice(modes)))
        with log.open("wb") as file:
            done.tofile(file)

    def _write(self, v2: RawClientV2) -> CompletedOperation:
        object_ = self._generator.choice(self._own)
        self._versions[object_] += 1
        version = self._versions[object_]
        is_delete = self._generator.randrange(DELETES) == 0
        began = time.monotonic_ns()
        if is_delete:
            status = v2.call(DELETE, f"/{object_}").status
            # Two deletes one behind the other: there is nothing, as after the first.
            assert status in (OK, NOT_FOUND), status
        else:
            assert v2.put(f"/{object_}", content_of(object_, version)).status == OK
        return CompletedOperation(object_, DELETED if is_delete else PUT, version, began, time.monotonic_ns())

    def _read(self, v2: RawClientV2, mode: Operation) -> CompletedOperation:
        object_ = self._generator.randrange(OBJECTS)
        began = time.monotonic_ns()
        answer = v2.call(mode, f"/{object_}")
        ended = time.monotonic_ns()
        if answer.status == NOT_FOUND:
            return CompletedOperation(object_, READ, NOTHING, began, ended)
        return CompletedOperation(object_, READ, version_of(object_, answer.read()), began, ended)


@dataclass
class History:
    """The operations on one object."""

    writes: list[CompletedOperation]
    reads: list[CompletedOperation]

    def violations(self) -> Iterator[str]:
        """Yield what cannot be: the reads in the order in which they began, each against what it may bring."""
        self.writes.sort(key=lambda write: write.version)
        began = [write.began for write in self.writes]
        ended = [write.ended for write in self.writes]
        deletes = [0, *(write.version for write in self.writes if write.kind == DELETED)]
        versions = {write.version for write in self.writes if write.kind == PUT}
        # What reads brought that may not have ended yet, by when they end; and the newest of those that have.
        pending: list[tuple[int, int]] = []
        newest = 0
        for read in sorted(self.reads, key=lambda read: read.began):
            while pending and pending[0][0] < read.began:
                newest = max(newest, heapq.heappop(pending)[1])
            # Writes are one behind the other, so as many have ended, or begun, as come before a time.
            least = max(bisect_left(ended, read.began), newest)
            most = bisect_left(began, read.ended)
            version = read.version
            if version == NOTHING:
                # Before the first write there is nothing. The earliest delete that fits keeps all others possible.
                at = bisect_left(deletes, least)
                version = deletes[at] if at < len(deletes) else TORN
            elif version not in versions:
                version = TORN
            if not least <= version <= most:
                yield f"{read} where {least} to {most} could be"
                continue
            heapq.heappush(pending, (read.ended, version))


def histories(logs: list[Path]) -> list[History]:
    """What all clients did, object by object."""
    found = [History([], []) for _ in range(OBJECTS)]
    for log in logs:
        values = array("q")
        values.frombytes(log.read_bytes())
        for at in range(0, len(values), FIELDS):
            done = CompletedOperation(*values[at : at + FIELDS])
            (found[done.object].reads if done.kind == READ else found[done.object].writes).append(done)
    return found


def run_model(folder: Path, model: Concurrency, given: argparse.Namespace, operations: int) -> bool:
    """Has the clients at work on one model, and looks at what they saw; prints a line."""
    (folder / "root").mkdir()
    flags = ("--tcp", "127.0.0.1:0", "--writable", "--concurrency-model", model, "--max-queue-depth", "1000")
    with ServerProcess(folder / "root", folder / "s", *flags) as server:
        clients = [Client(server.addresses, number, given.clients, given.seed) for number in range(given.clients)]
        logs = [folder / f"log-{number}" for number in range(given.clients)]
        share = operations // given.clients
        before, start = ProcessResources.of(server.pid), time.monotonic()
        processes = [
            multiprocessing.Process(target=client.run, args=(share, log))
            for client, log in zip(clients, logs, strict=True)
        ]
        for process in processes:
            process.start()
        for process in tqdm(processes, desc=str(model), unit="client", leave=False, disable=None):
            process.join()
        seconds, after = time.monotonic() - start, ProcessResources.of(server.pid)
    failed = sum(process.exitcode != 0 for process in processes)
    found = histories([log for log in logs if log.exists()])
    reads, writes = sum(len(each.reads) for each in found), sum(len(each.writes) for each in found)
    violations = [line for each in found for line in each.violations()]
    print(
        f"{model:<23}{reads:>9,} reads, {writes:>8,} writes in {seconds:.0f} s: {len(violations)} violations"
        f"{f', {failed} clients failed' if failed else ''}; {before.descriptors} → {after.descriptors} descriptors"
    )
    for line in violations[:10]:
        print(f"  {line}")
    return not violations and not failed and reads + writes == share * given.clients


def main() -> int:
    """Every model has its part of the operations."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--operations", type=int, default=1_000_000, help="over all models (1,000,000)")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--model", type=Concurrency, action="append", choices=MODELS)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    given = parser.parse_args()
    models = given.model or MODELS
    print(f"seed {given.seed}")
    # A write waits for the disk: where it is memory, there are more of them.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    results = []
    for model in models:
        with tempfile.TemporaryDirectory(prefix="objmapper-linear-", dir=memory) as folder:
            results.append(run_model(Path(folder), model, given, given.operations // len(models)))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
