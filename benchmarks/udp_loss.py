"""The time of a UDP transfer through a network that loses, duplicates and reorders datagrams.

    python benchmarks/udp_loss.py [--runs 200] [--loss 0,0.01,0.1,0.3] [--chunk 1152] [--jobs 4]

A real server, a real client, and between them a relay in user space that disturbs the datagrams with a seeded
generator: run 17 is the same every time. A piece has 32 KiB, as on loopback; `--chunk 1152` makes them as small as
between two machines.
"""

import argparse
import random
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from objmapper_client import Client, ObjmapperError
from objmapper_client._udp import connection
from objmapper_server import Config, Server

HOME = Path(__file__).parent.parent
sys.path.insert(0, str(HOME))
from tests.support.lossy_relay import lossy_relay  # noqa: E402 - the tests are beside the packages, not among them
from tests.support.network_faults import NetworkFaults  # noqa: E402

SIZE = 1 << 20
CONTENT = random.Random(1).randbytes(SIZE)


def main() -> None:
    """Runs every loss rate `runs` times and prints a line for each."""
    parser = argparse.ArgumentParser(description="loss")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--loss", default="0,0.01,0.1,0.3")
    parser.add_argument("--chunk", type=int, default=connection._LOOPBACK_CHUNK)
    parser.add_argument("--jobs", type=int, default=4)
    options = parser.parse_args()
    print(f"{SIZE >> 20} MiB in pieces of {options.chunk} bytes; 5 % duplicates, 20 % reordered, either way")
    columns = ("loss", "right", "bytes sent ÷ size", "most", "seconds", "most")
    print("".join(f"{name:>20}" for name in columns))
    with TemporaryDirectory() as scratch:
        Path(scratch, "object").write_bytes(CONTENT)
        with (
            Server(Config(root=scratch, udp="127.0.0.1:0")) as server,
            ProcessPoolExecutor(options.jobs) as processes,
        ):
            for loss in map(float, options.loss.split(",")):
                one = partial(run, server.addresses["udp"], options.chunk, loss)
                outcomes = list(processes.map(one, range(options.runs)))
                right = sum(is_right for is_right, _, _ in outcomes)
                factors = [sent / SIZE for _, sent, _ in outcomes]
                seconds = [took for _, _, took in outcomes]
                figures = (
                    f"{loss:.0%}",
                    f"{right} of {options.runs}",
                    f"{statistics.mean(factors):.3f}",
                    f"{max(factors):.3f}",
                    f"{statistics.mean(seconds):.2f}",
                    f"{max(seconds):.2f}",
                )
                print("".join(f"{figure:>20}" for figure in figures), flush=True)


def run(address: str, chunk: int, loss: float, seed: int) -> tuple[bool, int, float]:
    """One transfer: whether it arrived unchanged, the bytes that the server sent for it, and its time."""
    connection._LOOPBACK_CHUNK = chunk
    faults = NetworkFaults(loss=loss, duplicates=0.05, reordering=0.2)
    with lossy_relay(address, faults, seed) as relay, Client(relay.address, timeout=300) as client:
        start = time.monotonic()
        try:
            is_right = client.read("/object") == CONTENT
        except ObjmapperError as error:
            print(f"run {seed}: {error}")
            is_right = False
        return is_right, relay.bytes_from_server, time.monotonic() - start


if __name__ == "__main__":
    main()
