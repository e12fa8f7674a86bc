"""A program: a hundred clients that never read their descriptors, and one honest one, under a small descriptor limit.

``python -m tests.hoarders MODEL DIRECTORY`` runs it as a user who is not root (root is exempt from the kernel's limit
on descriptors in flight). It prints how many requests of the honest client succeeded, of how many.
"""

import os
import resource
import sys
from pathlib import Path

from objmapper_client import Client
from objmapper_server import Concurrency, Config, Server
from tests.wire import FDPASS, Wire, request

HOARDERS = 100
LIMIT = 1024
TRIES = 300
NOBODY = 65534


def become_nobody() -> None:
    """Gives up root, for good, and the right to many descriptors."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def main(model: str, directory: Path) -> None:
    """Loads the server with hoarders, then asks as an honest client."""
    root = directory / "root"
    root.mkdir()
    (root / "a").write_bytes(b"a")
    directory.chmod(0o777)
    become_nobody()
    config = Config(root=root, unix=directory / "o.sock", concurrency_model=Concurrency(model))
    with Server(config) as server:
        address = server.addresses["unix"]
        hoarders = [Wire(address) for _ in range(HOARDERS)]
        for hoarder in hoarders:
            hoarder.socket.setblocking(False)
            try:
                hoarder.send(request(FDPASS, "/a") * 500)
            except BlockingIOError:
                continue
        served = 0
        # A client as programs use it: it asks a server that is busy for a moment again, three times in all.
        with Client(address, timeout=5) as honest:
            for _ in range(TRIES):
                served += honest.read("/a", mode="fdpass") == b"a"
        for hoarder in hoarders:
            hoarder.close()
    print(f"{served} of {TRIES}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
