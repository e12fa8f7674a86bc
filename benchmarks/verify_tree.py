"""Serves a directory, fetches every file under it in every way, and compares the contents with the disk.

    verify_tree.py ROOT [--concurrency-model MODEL] [--workers N]

Ways: descriptor, copy and splice over a Unix socket, copy and splice over TCP, each with `Client` (threads) and with
`AsyncClient` (tasks). The server must reject symbolic links, FIFOs, sockets, devices and files that it may not read, in
every way. Ends with 1 if anything differs.
"""

import argparse
import asyncio
import hashlib
import os
import stat
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Never

from tqdm import tqdm

from objmapper_client import AsyncClient, Client, Mode, ObjmapperError, PermissionDenied
from objmapper_server import Concurrency, Config, Server

CHUNK = 1 << 20
METHODS = [
    ("unix", Mode.FDPASS),
    ("unix", Mode.COPY),
    ("unix", Mode.SPLICE),
    ("tcp", Mode.COPY),
    ("tcp", Mode.SPLICE),
]


@dataclass(frozen=True)
class Entry:
    """A file below the root; `digest` is None if the server must reject it."""

    path: Path
    uri: str
    size: int
    digest: str | None


@dataclass
class Tree:
    """The files below the root."""

    entries: list[Entry] = field(default_factory=list)
    unnameable: int = 0

    @property
    def files(self) -> list[Entry]:
        """The regular files, which must all arrive complete."""
        return [entry for entry in self.entries if entry.digest is not None]


@dataclass
class ReadCounts:
    """The results of one way of fetching."""

    files: int = 0
    content: int = 0
    refused: int = 0
    differences: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def count(self, entry: Entry, answer: str | ObjmapperError) -> None:
        """Compare the digest, or the error, for an entry."""
        if entry.digest is None:
            if isinstance(answer, PermissionDenied):
                self.refused += 1
            else:
                self.differences.append(f"{entry.uri}: must be refused, and gave {answer}")
        elif isinstance(answer, str) and answer in (entry.digest, digest_on_disk(entry.path)):
            # Read the file again, in case it changed meanwhile.
            self.files += 1
            self.content += entry.size
        else:
            self.differences.append(f"{entry.uri}: {answer}, and on the disk {entry.digest}")


def digest_on_disk(path: Path) -> str | None:
    """The SHA-256 of a file; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def paths_below(root: Path) -> Iterator[Path]:
    """All files below the root other than directories; links to directories are not followed."""
    for folder, folders, files in os.walk(root):
        for name in files + [name for name in folders if Path(folder, name).is_symlink()]:
            yield Path(folder, name)


def read_tree(root: Path) -> Tree:
    """Walks the tree and reads every file once."""
    tree = Tree()
    for path in tqdm(sorted(paths_below(root)), desc="reading the tree", unit="file", disable=None):
        uri = f"/{path.relative_to(root)}"
        try:
            fits = len(uri.encode()) <= 4096
        except UnicodeEncodeError:
            fits = False
        if not fits:
            tree.unnameable += 1
            continue
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue
        digest = digest_on_disk(path) if stat.S_ISREG(found.st_mode) else None
        tree.entries.append(Entry(path, uri, found.st_size, digest))
    return tree


def fetch(client: Client, entry: Entry, mode: Mode) -> str | ObjmapperError:
    """The SHA-256 of the server's content, or its error."""
    sha = hashlib.sha256()
    try:
        if mode is Mode.FDPASS:
            with client.open(entry.uri, mode=mode) as found:
                while chunk := found.read(CHUNK):
                    sha.update(chunk)
        else:
            for chunk in client.stream(entry.uri, mode=mode, chunk_size=CHUNK):
                sha.update(chunk)
    except ObjmapperError as error:
        return error
    return sha.hexdigest()


async def fetch_async(client: AsyncClient, entry: Entry, mode: Mode) -> str | ObjmapperError:
    """`fetch`, with the other client."""
    sha = hashlib.sha256()
    try:
        if mode is Mode.FDPASS:
            with await client.open(entry.uri, mode=mode) as found:
                while chunk := found.read(CHUNK):
                    sha.update(chunk)
        else:
            async for chunk in client.stream(entry.uri, mode=mode, chunk_size=CHUNK):
                sha.update(chunk)
    except ObjmapperError as error:
        return error
    return sha.hexdigest()


def run_threads(address: str, mode: Mode, entries: Sequence[Entry], workers: int, bar: "tqdm[Never]") -> ReadCounts:
    """Fetches all entries with `Client`, from several threads."""
    counts = ReadCounts()
    with Client(address, max_connections=workers) as client, ThreadPoolExecutor(workers) as pool:
        for entry, answer in zip(entries, pool.map(lambda entry: fetch(client, entry, mode), entries), strict=True):
            counts.count(entry, answer)
            bar.update()
    return counts


async def run_tasks(address: str, mode: Mode, entries: Sequence[Entry], workers: int, bar: "tqdm[Never]") -> ReadCounts:
    """Fetches all entries with `AsyncClient`, from several tasks."""
    counts = ReadCounts()
    left = iter(entries)

    async def answers(client: AsyncClient) -> AsyncIterator[tuple[Entry, str | ObjmapperError]]:
        for entry in left:
            yield entry, await fetch_async(client, entry, mode)

    async def work(client: AsyncClient) -> None:
        async for entry, answer in answers(client):
            counts.count(entry, answer)
            bar.update()

    async with AsyncClient(address, max_connections=workers) as client, asyncio.TaskGroup() as tasks:
        for _ in range(workers):
            tasks.create_task(work(client))
    return counts


def human(size: float) -> str:
    """Bytes, for people."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def report(tree: Tree, counts_by_method: dict[tuple[str, str, str], ReadCounts]) -> bool:
    """Prints the table. Returns whether all results are right."""
    wanted, refusals = len(tree.files), len(tree.entries) - len(tree.files)
    size = sum(entry.size for entry in tree.files)
    print(f"{wanted:,} regular files of {human(size)}; {refusals:,} entries that must be refused")
    if tree.unnameable:
        print(f"{tree.unnameable:,} names left out: no URI can say them (not UTF-8, or over 4,096 bytes)")
    print(
        f"\n{'transport':<10}{'mode':<8}{'client':<13}{'files':>9}{'bytes':>17}{'refused':>9}{'wrong':>7}{'MiB/s':>9}"
    )
    for (transport, mode, client), counts in counts_by_method.items():
        rate = counts.content / counts.seconds / (1 << 20) if counts.seconds else 0.0
        print(
            f"{transport:<10}{mode:<8}{client:<13}{counts.files:>9,}{counts.content:>17,}"
            f"{counts.refused:>9,}{len(counts.differences):>7}{rate:>9.0f}"
        )
    wrong = [line for counts in counts_by_method.values() for line in counts.differences]
    for line in wrong[:20]:
        print(f"  {line}")
    if len(wrong) > 20:
        print(f"  … and {len(wrong) - 20} more")
    good = all(counts.files == wanted and counts.refused == refusals for counts in counts_by_method.values())
    print("\neverything that came is what is on the disk" if good and not wrong else "\nsomething differs")
    return good and not wrong


def main() -> int:
    """Serve, fetch, compare, report."""
    parser = argparse.ArgumentParser(description="Fetch every file under ROOT in every way, and compare.")
    parser.add_argument("root", type=Path, metavar="ROOT")
    parser.add_argument("--concurrency-model", type=Concurrency, default=Concurrency.AUTO, choices=list(Concurrency))
    parser.add_argument("--workers", type=int, default=4, help="threads, or tasks, that fetch at once (4)")
    given = parser.parse_args()
    if not given.root.is_dir():
        parser.error(f"{given.root} is no directory")
    root = given.root.resolve()
    tree = read_tree(root)
    counts_by_method: dict[tuple[str, str, str], ReadCounts] = {}
    with tempfile.TemporaryDirectory(prefix="objmapper-verify-") as folder:
        config = Config(
            root=root,
            unix=Path(folder, "socket"),
            tcp="127.0.0.1:0",
            admin=None,
            concurrency_model=given.concurrency_model,
        )
        with (
            Server(config) as server,
            tqdm(total=len(tree.entries) * len(METHODS) * 2, desc="fetching", unit="file", disable=None) as bar,
        ):
            for transport, mode in METHODS:
                address = server.addresses[transport]
                for client in ("Client", "AsyncClient"):
                    bar.set_description(f"{transport} {mode.name.lower()} {client}")
                    began = time.perf_counter()
                    if client == "Client":
                        counts = run_threads(address, mode, tree.entries, given.workers, bar)
                    else:
                        counts = asyncio.run(run_tasks(address, mode, tree.entries, given.workers, bar))
                    counts.seconds = time.perf_counter() - began
                    counts_by_method[transport, mode.name.lower(), client] = counts
    return 0 if report(tree, counts_by_method) else 1


if __name__ == "__main__":
    sys.exit(main())
