"""Checks that no request leaves the root: hostile URIs, then a race with renames and links.

    python -m benchmarks.soak.path_traversal [--seconds 60] [--model MODEL …] [--seed 1]

Beside the root lies a directory whose files must stay unread and unchanged. First come hundreds of URIs, for every
operation of both versions: each must be rejected, or lead to an object of the root. Then another process exchanges
directories and files of the root with links to files outside (renameat2(2), RENAME_EXCHANGE) as fast as it can, while
clients read, put and delete there, half the time with `follow_symlinks`. All content must be from inside, and files
outside must not change. There are also requests for a FIFO, a socket, a device and a directory; `slowest` is the
slowest response to one of these. Ends with 1 if content comes from outside, or a file there changes.
"""

import argparse
import itertools
import os
import random
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from objmapper_server import Concurrency, Config, Server
from tests.support.models import MODELS
from tests.support.raw_client import OK, RawClient
from tests.support.raw_client import request as request_one
from tests.support.raw_client_v2 import COPY, DELETE, FDPASS, LIST, PUT, SPLICE, STAT, RawClientV2, frame, parameter

INSIDE, OUTSIDE, WRITTEN = b"from inside the root", b"SECRET: from outside the root", b"written by a client"
#: The parameter of a put that says how much follows.
CONTENT_LEN = 0x84
READERS = 4

#: Exchanges pairs of names until it is killed: a path lookup between two of these calls sees either.
EXCHANGER = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
pairs = [(a.encode(), b.encode()) for a, b in zip(sys.argv[1::2], sys.argv[2::2])]
print("begun", flush=True)
while True:
    for a, b in pairs:
        if libc.renameat2(-100, a, -100, b, 2) != 0:
            raise OSError(ctypes.get_errno(), "renameat2")
"""


class ServedTree:
    """A root, and what lies beside it."""

    def __init__(self, folder: Path) -> None:
        self.root, self.outside = folder / "root", folder / "outside"
        for directory in (self.root, self.outside):
            (directory / "sub").mkdir(parents=True)
            content = INSIDE if directory == self.root else OUTSIDE
            for name in ("object", "sub/object", "sub/gone"):
                (directory / name).write_bytes(content)
        links: dict[str, str | Path] = {
            "to-file": self.outside / "object",
            "to-directory": self.outside,
            "up": "..",
            "relative": "../outside/object",
            "absolute-root": "/",
            "self": "/proc/self/root",
            "working": "/proc/self/cwd",
            "through": "to-directory/object",
            "round": "round",
        }
        for name, target in links.items():
            (self.root / name).symlink_to(target)
        os.mkfifo(self.root / "fifo")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self.root / "socket"))
        if os.geteuid() == 0:
            os.mknod(self.root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        self._before = self._seen_outside()

    def _seen_outside(self) -> dict[str, tuple[int, int, bytes]]:
        found = {}
        for path in sorted(self.outside.rglob("*")):
            about = path.lstat()
            found[str(path)] = (about.st_ino, about.st_mode, path.read_bytes() if path.is_file() else b"")
        return found

    def changes_outside(self) -> list[str]:
        """The files that changed."""
        now = self._seen_outside()
        return [name for name in now.keys() | self._before.keys() if now.get(name) != self._before.get(name)]


def hostile_uris(tree: ServedTree, generator: random.Random) -> list[bytes]:
    """Several hundred, each different."""
    outside = str(tree.outside / "object").encode()
    climbs = [b"../" * depth for depth in range(1, 12)]
    targets = [b"outside/object", outside[1:], b"etc/passwd", b"proc/self/environ", b"proc/1/root/etc/passwd"]
    ways = [
        b"",
        b"/",
        b"//",
        b"/./",
        b"sub/",
        b"/sub/",
        b"/sub/./",
        b"object/",
        b"\\",
        b"/%2e%2e/",
        b"/..%2f",
        b"/\xc0\xae.",
    ]
    uris = {way + climb + target for way, climb, target in itertools.product(ways, climbs, targets)}
    uris |= {way + target for way, target in itertools.product(ways, targets)}
    uris |= {
        b"/" + name + rest
        for name in (b"to-file", b"to-directory", b"up", b"self", b"working", b"absolute-root")
        for rest in (b"", b"/", b"/object", b"/..", b"/../outside/object", b"/outside/object", b"/etc/passwd")
    }
    uris |= {outside, b"file://" + outside, b"/proc/self/fd/3", b"/proc/self/root" + outside, b"/dev/fd/0", b"~/object"}
    uris |= {
        b"/object\0",
        b"/object\0/../outside/object",
        b"\0",
        b"/" + b"a" * 300,
        b"/" + b"a/" * 2000,
        b"/" + b"x" * 4095,
    }
    uris |= {
        b"/.objmapper",
        b"/.objmapper/x",
        b"/sub/../object",
        b"/sub//object",
        b"/object/",
        b"/sub/.",
        b"/round",
        b"/through",
    }
    uris |= {b"/" + bytes(generator.randrange(256) for _ in range(generator.randrange(1, 40))) for _ in range(200)}
    return sorted(uris)


def is_from_outside(content: bytes) -> bool:
    """Whether these are bytes of a file beside the root, or of the machine's own."""
    return b"SECRET" in content or b"root:" in content or b"PATH=" in content


def try_uris(address: str, tree: ServedTree, uris: list[bytes], counts: Counter[str]) -> list[str]:
    """Asks for each in every way that there is. Returns what came from outside."""
    wrong = []
    for uri in uris:
        for operation in (FDPASS, COPY, SPLICE, STAT, LIST, PUT, DELETE):
            if operation is DELETE and uri.lstrip(b"/") in (b"object", b"sub/object"):
                continue
            with RawClientV2(address) as v2:
                content = WRITTEN if operation is PUT else b""
                length = parameter(CONTENT_LEN, struct.pack(">Q", len(content))) if operation is PUT else None
                v2.expect(1, operation)
                v2.send(frame(1, bytes([operation.value]), uri, parameters=length), content)
                answer = v2.answer()
                counts["served" if answer.status == OK else "refused"] += 1
                if answer.status == OK and operation in (FDPASS, COPY, SPLICE) and is_from_outside(answer.read()):
                    wrong.append(f"{operation.name} {uri!r}")
        for mode in (b"1", b"2", b"3"):
            with RawClient(address) as v1:
                reply = v1.ask(mode, uri)
                counts["served" if reply.status == OK else "refused"] += 1
                if reply.status == OK and is_from_outside(reply.read()):
                    wrong.append(f"version 1, mode {mode.decode()} {uri!r}")
    return wrong + [f"changed outside: {name}" for name in tree.changes_outside()]


def request_special_files(address: str, tree: ServedTree) -> float:
    """Seconds that the slowest answer took; each must be a refusal."""
    slowest = 0.0
    names = [name for name in ("fifo", "socket", "null", "sub") if (tree.root / name).exists()]
    with RawClient(address) as v1:
        for name, mode in itertools.product(names, (b"1", b"2", b"3")):
            began = time.monotonic()
            assert v1.ask(mode, f"/{name}").status != OK, name
            slowest = max(slowest, time.monotonic() - began)
    return slowest


class RacingReader(threading.Thread):
    """A client that reads and writes where the names are exchanged, until a time."""

    def __init__(self, address: str, until: float, seed: int) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._address, self._until, self._generator = address, until, random.Random(seed)

    def run(self) -> None:
        """Ask."""
        try:
            with RawClient(self._address) as v1, RawClientV2(self._address) as v2:
                while time.monotonic() < self._until:
                    self._ask(v1, v2)
        except (AssertionError, OSError, EOFError) as error:
            self.wrong.append(f"a client failed: {error!r}")

    def _ask(self, v1: RawClient, v2: RawClientV2) -> None:
        uri = self._generator.choice(("/race/object", "/race/sub/object", "/swapped", "/race/gone", "/race/sub/new"))
        match self._generator.randrange(8):
            case 0:
                status = v2.put(uri, WRITTEN).status
                what = "put"
            # Both names of what is exchanged must stay.
            case 1 if uri != "/swapped":
                status = v2.call(DELETE, uri).status
                what = "deleted"
            case number:
                mode = b"123"[number % 3 : number % 3 + 1]
                v1.send(request_one(mode, uri))
                reply = v1.reply(mode)
                status, what = reply.status, "read"
                if status == OK and (content := reply.read()) not in (INSIDE, WRITTEN):
                    self.wrong.append(f"{uri}: {content!r}")
        self.counts[what if status == OK else "refused"] += 1


def race(tree: ServedTree, config: Config, seconds: float, seed: int) -> tuple[Counter[str], list[str]]:
    """Exchanges names under clients for this time. Returns their counts, and what was wrong."""
    root = tree.root
    (root / "race" / "sub").mkdir(parents=True, exist_ok=True)
    for name in ("race/object", "race/sub/object", "swapped"):
        (root / name).write_bytes(INSIDE)
    for name, target in (("race-link", tree.outside), ("swapped-link", tree.outside / "object")):
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(target)
    names = [root / name for name in ("race", "race-link", "swapped", "swapped-link")]
    counts: Counter[str] = Counter()
    with Server(config) as server:
        exchanger = subprocess.Popen([sys.executable, "-I", "-S", "-c", EXCHANGER, *names], stdout=subprocess.PIPE)
        assert exchanger.stdout is not None
        with exchanger, exchanger.stdout:
            exchanger.stdout.readline()
            until = time.monotonic() + seconds
            racing_readers = [RacingReader(server.addresses["unix"], until, seed + number) for number in range(READERS)]
            for reader in racing_readers:
                reader.start()
            for reader in racing_readers:
                reader.join()
            assert exchanger.poll() is None, "the exchanging of names failed"
            exchanger.kill()
    wrong = [line for reader in racing_readers for line in reader.wrong]
    for reader in racing_readers:
        counts += reader.counts
    return counts, wrong + [f"changed outside: {name}" for name in tree.changes_outside()]


def cases(folder: Path, models: list[Concurrency]) -> Iterator[tuple[str, ServedTree, Config]]:
    """Each model, with links that are refused and with links that are followed."""
    for model, follows in itertools.product(models, (False, True)):
        here = folder / f"{model}-{follows}"
        tree = ServedTree(here)
        config = Config(
            root=tree.root, unix=here / "s", concurrency_model=model, follow_symlinks=follows, writable=True
        )
        yield f"{model}{', follows links' if follows else ''}", tree, config


def main() -> int:
    """Tries every model, reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60, help="of the race, over all models (60)")
    parser.add_argument("--model", type=Concurrency, action="append", choices=MODELS)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    given = parser.parse_args()
    print(f"seed {given.seed}")
    models = given.model or MODELS
    found = 0
    with tempfile.TemporaryDirectory(prefix="objmapper-path-traversal-") as folder:
        rounds = list(cases(Path(folder), models))
        for name, tree, config in tqdm(rounds, unit="case", disable=None):
            uris, asked = hostile_uris(tree, random.Random(given.seed)), Counter[str]()
            with Server(config) as server:
                wrong = try_uris(server.addresses["unix"], tree, uris, asked)
                slowest = request_special_files(server.addresses["unix"], tree)
            raced, more = race(tree, config, given.seconds / len(rounds), given.seed)
            wrong += more
            found += len(wrong)
            tqdm.write(
                f"{name}: {len(uris):,} hostile URIs: {asked['refused']:,} refused, {asked['served']:,} served; "
                f"race: {raced['read']:,} read, {raced['put']:,} put, {raced['deleted']:,} deleted, "
                f"{raced['refused']:,} refused; slowest {slowest * 1000:.1f} ms; {len(wrong)} from outside",
                file=sys.stdout,
            )
            for line in wrong[:10]:
                tqdm.write(f"  {line}", file=sys.stdout)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
