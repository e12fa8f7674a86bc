"""Clients that request long pages of a list and never read: the memory that the server takes and returns.

    python -m benchmarks.soak.unread_answers [--clients 40 …] [--names 600] [--seconds 5] [--model MODEL …]
                                             [--transport unix|tcp …]

Each sends 64 requests for a page of 1 MiB. 400 clients, which all belong to one user, request more than
`max_output_memory`. Meanwhile an honest client of the same user lists and reads, and one of another user where the soak
is run by root and the transport is a Unix socket. Then all disconnect. Ends with 1 if the server uses more than
`max_output_memory`, or more than `max_output_buffer` for each client, and for all else 128 MiB and 128 KiB a client; if
10 seconds after they disconnected it has 32 MiB more than before they connected; or if an honest request fails.
"""

import argparse
import contextlib
import itertools
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.soak.process_resources import ProcessResources
from objmapper_server import Concurrency
from tests.support.models import MODELS
from tests.support.raw_client_v2 import COPY, LIST, RawClientV2
from tests.support.server_process import ServerProcess
from tests.support.users import OtherUser, why_no_users

REQUESTS = 64
#: Long, so that a page of 1 MiB costs little work: memory is what is measured here.
PREFIX = f"/{'/'.join(['names' * 40] * 9)}/"
OTHER_UID = 4001
#: The defaults, in bytes.
PER_CONNECTION, TOTAL = 4 << 20, 256 << 20
#: What the server may take besides: directories that it keeps for the next page of a listing, and the buffers of its
#: threads; and for each client, which may have a thread.
BESIDES, EACH = 128 << 20, 128 << 10
#: Seconds after the clients have left, and the bytes that the server may then have more than before.
REST, LEFT = 10, 32 << 20


def main() -> int:
    """Makes the names, runs the models, reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[40, 400])
    parser.add_argument("--names", type=int, default=600)
    parser.add_argument("--seconds", type=float, default=5, help="how long they stay (5)")
    parser.add_argument("--model", type=Concurrency, action="append", choices=MODELS)
    parser.add_argument("--transport", action="append", choices=["unix", "tcp"])
    given = parser.parse_args()
    runs = itertools.product(given.model or MODELS, given.transport or ["unix", "tcp"], given.clients)
    with tempfile.TemporaryDirectory(prefix="objmapper-unread-") as folder:
        root = Path(folder) / "root"
        names = root / PREFIX[1:]
        names.mkdir(parents=True)
        (root / "content").write_bytes(b"hello")
        for number in range(given.names):
            (names / f"{number:0120}").touch()
        # Other users must get to the socket.
        Path(folder).chmod(0o755)
        failed = [run for run in runs if not run_model(Path(folder), *run, given.seconds)]
    return 1 if failed else 0


def run_model(folder: Path, model: Concurrency, transport: str, count: int, seconds: float) -> bool:
    """Runs a number of them against one model and prints a line."""
    flags = ["--tcp", "127.0.0.1:0", "--unix-mode", "0666", "--concurrency-model", model]
    with ServerProcess(folder / "root", folder / "socket", *flags) as server:
        address = server.addresses[transport]
        with RawClientV2(address) as honest:
            # The memory of a listing itself does not count as a response.
            assert honest.call_until_served(LIST, PREFIX, limit=10_000).entries()
        before = ProcessResources.after_settling(server.pid).resident
        most, slowest, requests = before, [0.0, 0.0], 0
        with contextlib.ExitStack() as clients:
            for _ in range(count):
                v2 = clients.enter_context(RawClientV2(address, timeout=60))
                v2.send(b"".join(v2.encode(LIST, PREFIX, limit=10_000) for _ in range(REQUESTS)))
            honest_clients = [clients.enter_context(RawClientV2(address, timeout=300))]
            if transport == "unix" and not why_no_users():
                other = clients.enter_context(OtherUser(OTHER_UID, OTHER_UID))
                honest_clients.append(clients.enter_context(RawClientV2(other.connect(address), timeout=60)))
            until = time.monotonic() + seconds
            while time.monotonic() < until or not requests:
                for at, honest in enumerate(honest_clients):
                    began = time.monotonic()
                    assert honest.call_until_served(COPY, "/content").content == b"hello"
                    assert honest.call_until_served(LIST, PREFIX, limit=10).entries()
                    slowest[at] = max(slowest[at], time.monotonic() - began)
                    requests += 2
                most = max(most, ProcessResources.of(server.pid).resident)
                time.sleep(0.01)
        time.sleep(REST)
        after = ProcessResources.of(server.pid).resident
    bound = min(count * PER_CONNECTION, TOTAL) + BESIDES + count * EACH
    print(
        f"{model:<23}{transport:<5}{before / 2**20:5.1f} MiB before, {(most - before) / 2**20:+.1f} with {count}, "
        f"{(after - before) / 2**20:+.1f} {REST} s after they left; {requests} honest requests, "
        f"the slowest pair {slowest[0] * 1000:.0f} ms, of another user {slowest[1] * 1000:.0f} ms",
        flush=True,
    )
    return most - before <= bound and after - before <= LEFT


if __name__ == "__main__":
    sys.exit(main())
