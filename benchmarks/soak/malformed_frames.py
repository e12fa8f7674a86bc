"""A million malformed frames over live sockets: no crash, no hang, no leak, no effect on other clients.

    python -m benchmarks.soak.malformed_frames [--frames 1000000] [--settle 160] [--model MODEL …] [--seed 1]

Random bytes, good requests of both versions that were cut, stretched, repeated, or had bits turned and lengths changed,
wrong hellos, and unexpected descriptors; each on a connection of its own, over Unix and TCP, since a
frame that is not understood ends one. Every connection must end within seconds after the client has sent everything.
Meanwhile an honest client sends requests. The server's statistics of the last minute take memory for each second and
kind of request, so it first settles, and later results are compared with that state. Ends with 1 if a connection hangs,
an honest request fails, or the server has more descriptors, or a MiB more memory, than after it settled.

`cargo test --release --no-default-features malformed` sends ten million through the parsers alone.
"""

import argparse
import contextlib
import os
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.soak.process_resources import ProcessResources
from benchmarks.soak.slow_writers import CONTENT, OBJECT, WellBehavedClient
from objmapper_server import Concurrency
from tests.support.models import MODELS
from tests.support.raw_client import request
from tests.support.raw_client_v2 import frame, hello, parameter
from tests.support.server_process import ServerProcess
from tests.support.vectors import load, unhex

#: Frames that are made beforehand; each goes out many times.
DISTINCT = 20_000
#: The vectors of the codecs, valid and invalid: requests of version 1, and of version 2 behind a greeting.
KNOWN = [unhex(row[1]) for row in load("v1_requests.txt")] + [
    hello() + unhex(row[2]) for row in load("v2_requests.txt")
]
#: Seconds until a connection whose client has said all must be over.
TIMEOUT = 10.0
MIB = 1 << 20
#: Seconds that figures are kept for; settled for less, a server's memory says nothing.
MINUTE = 60


def valid_frame(generator: random.Random) -> bytes:
    """A valid message of a client."""
    uri = generator.choice((b"/a", b"/none", b"/../a", b"/" + b"u" * generator.randrange(4200)))
    number = generator.randrange(1 << 32)
    operations = [
        frame(number, bytes([generator.choice(b"123slpPd")]), uri, generator.randrange(256)),
        frame(number, b"p", b"/written", 0, parameter(0x84, generator.randrange(1 << 40).to_bytes(8, "big"))),
        frame(number, b"2", uri, 0, parameter(generator.randrange(256), generator.randbytes(generator.randrange(40)))),
        b"\x03\x00",
    ]
    version_two = hello(generator.randrange(1 << 16), generator.randrange(1 << 16)) + b"".join(
        generator.choices(operations, k=generator.randrange(4))
    )
    return generator.choice((request(generator.choice((b"1", b"2", b"3")), uri), version_two, generator.choice(KNOWN)))


def malformed_frame(generator: random.Random) -> bytes:
    """A valid message with an error."""
    message = bytearray(valid_frame(generator))
    for _ in range(generator.randrange(4)):
        at = generator.randrange(len(message) + 1)
        match generator.randrange(6):
            case 0:
                del message[at:]
            case 1:
                message[at:at] = generator.randbytes(generator.randrange(64))
            case 2 if at < len(message):
                message[at] ^= 1 << generator.randrange(8)
            case 3:
                message[at : at + 2] = generator.choice((b"\xff\xff", b"\x00\x00", b"\x10\x01"))
            case 4:
                message += bytes(valid_frame(generator))
            case _:
                message[:at] = generator.randbytes(at)
    return bytes(message) or b"\xff"


def send_frames(
    addresses: dict[str, str], frames: list[bytes], count: int, generator: random.Random, name: str
) -> Counter[str]:
    """Sends this number of frames, each on a connection of its own. Returns how many connections ended in which way.

    Shows its progress where it has a name.
    """
    counts = Counter[str]()
    host, _, port = addresses["tcp"].removeprefix("tcp://").rpartition(":")
    places: list[tuple[socket.AddressFamily, Any]] = [
        (socket.AF_UNIX, addresses["unix"].removeprefix("unix:")),
        (socket.AF_INET, (host, int(port))),
    ]
    with Path(os.devnull).open("rb") as spare:
        for number in tqdm(
            range(count), desc=name, unit="frame", unit_scale=True, leave=False, disable=None if name else True
        ):
            family, place = places[number & 1]
            with socket.socket(family, socket.SOCK_STREAM) as connection:
                connection.settimeout(TIMEOUT)
                connection.connect(place)
                message = frames[generator.randrange(len(frames))]
                try:
                    if family == socket.AF_UNIX and number % 50 == 0:
                        socket.send_fds(connection, [message], [spare.fileno()] * generator.randrange(1, 5))
                    else:
                        connection.sendall(message)
                    connection.shutdown(socket.SHUT_WR)
                    counts[read_ending(connection)] += 1
                except (BrokenPipeError, ConnectionResetError):
                    counts["reset"] += 1
                except OSError as error:
                    counts[f"HUNG: {message[:40]!r}: {error}"] += 1
    return counts


def read_ending(connection: socket.socket) -> str:
    """Reads to the end; descriptors that come are closed by the kernel, without a buffer for them."""
    taken = 0
    while chunk := connection.recv(1 << 16):
        taken += len(chunk)
    return "answered" if taken else "closed"


def warm_up(servers: Iterable[ServerProcess], frames: list[bytes], seconds: float, generator: random.Random) -> None:
    """Sends malformed frames to all servers, in turn, for this time."""
    began = time.monotonic()
    with tqdm(total=round(seconds), desc="settling", unit="s", leave=False, disable=None) as bar:
        while (passed := time.monotonic() - began) < seconds:
            bar.update(round(passed) - bar.n)
            for server in servers:
                send_frames(server.addresses, frames, 1000, generator, "")


def run_model(
    server: ServerProcess, model: Concurrency, frames: list[bytes], given: argparse.Namespace, generator: random.Random
) -> bool:
    """Pelts a server of this model, and prints a line."""
    count = given.frames // len(given.model)
    before, began = ProcessResources.after_settling(server.pid), time.monotonic()
    with WellBehavedClient(server.addresses["unix"]) as honest:
        counts = send_frames(server.addresses, frames, count, generator, model)
        seconds = time.monotonic() - began
    after = before.now(server.pid)
    survived = server.process.poll() is None
    hung = [line for line in counts if line.startswith("HUNG")]
    print(
        f"{model:<23}{count:>9,} frames in {seconds:.0f} s: {counts['answered']:,} answered, {counts['closed']:,} "
        f"closed, {counts['reset']:,} reset, {len(hung)} hung; honest: {honest.right:,} right, {len(honest.wrong)} "
        f"wrong\n{'':<23}{before} → {after}"
    )
    for line in [*hung[:5], *honest.wrong[:5]]:
        print(f"  {line}")
    has_settled = given.settle >= MINUTE
    has_grown = after.descriptors > before.descriptors or (has_settled and after.resident > before.resident + MIB)
    return survived and not hung and not honest.wrong and honest.right > 0 and not has_grown


def main() -> int:
    """Every model gets its part of the frames."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--frames", type=int, default=1_000_000, help="over all models (1,000,000)")
    parser.add_argument("--settle", type=float, default=160, help="seconds before it counts (160)")
    parser.add_argument("--model", type=Concurrency, action="append", choices=MODELS)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    given = parser.parse_args()
    given.model = given.model or MODELS
    print(f"seed {given.seed}")
    generator = random.Random(given.seed)
    frames = [malformed_frame(generator) for _ in range(DISTINCT)]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="objmapper-malformed-")))
        (folder / "root").mkdir()
        for name in ("a", OBJECT.removeprefix("/")):
            (folder / "root" / name).write_bytes(CONTENT)
        servers = {}
        for model in given.model:
            flags = ("--tcp", "127.0.0.1:0", "--concurrency-model", model, "--writable")
            server = ServerProcess(folder / "root", folder / f"{model}.sock", *flags)
            servers[model] = stack.enter_context(server)
        warm_up(servers.values(), frames, given.settle, generator)
        results = [run_model(server, model, frames, given, generator) for model, server in servers.items()]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
