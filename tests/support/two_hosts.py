"""Two network namespaces with a virtual cable between them: their datagrams do not use loopback.

Needs root and iproute2; where these are missing, `two_hosts` says why.
"""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000


class NotPermitted(Exception):
    """Namespaces cannot be made here; the words say why."""


class Host:
    """One namespace: its addresses, and a thread that lives in it."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        #: Of the network for benchmarks (RFC 2544), and of a private one.
        self.address = f"198.18.0.{number}"
        self.second_address = f"198.18.0.{number + 100}"
        self.address6 = f"fd00:6f62:6a6d::{number}"
        self._thread = ThreadPoolExecutor(1, initializer=self._move_in)

    def _move_in(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            # Of this thread alone, and of those that it starts.
            if libc.setns(descriptor, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(descriptor)

    def run(self, function: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Calls the function in the namespace: sockets that it makes are there, wherever they are used."""
        return self._thread.submit(function, *arguments, **options).result()

    def close(self) -> None:
        self._thread.shutdown()


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """A server's host and a client's, until the end of the block. Raises NotPermitted."""
    if os.geteuid() != 0:
        raise NotPermitted("network namespaces need root")
    if shutil.which("ip") is None:
        raise NotPermitted("network namespaces need iproute2")
    names = [f"objmapper-{os.getpid()}-{end}" for end in ("server", "client")]
    cable = [f"om{os.getpid()}{end}"[-15:] for end in "sc"]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", cable[0], "netns", names[0], "type", "veth", "peer", "name", cable[1], "netns", names[1])
        hosts = [Host(name, number) for number, name in enumerate(names, start=1)]
        try:
            for host, end in zip(hosts, cable, strict=True):
                for address in (f"{host.address}/24", f"{host.second_address}/24"):
                    _ip("-n", host.name, "addr", "add", address, "dev", end)
                # Without duplicate address detection, which takes a second.
                _ip("-n", host.name, "addr", "add", f"{host.address6}/64", "dev", end, "nodad")
                # Without this the kernel would hand large messages over whole, as no real cable does.
                _ip("-n", host.name, "link", "set", end, "gso_max_segs", "1")
                _ip("-n", host.name, "link", "set", end, "up")
                _ip("-n", host.name, "link", "set", "lo", "up")
            yield hosts[0], hosts[1]
        finally:
            for host in hosts:
                host.close()
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NotPermitted(f"ip {' '.join(words)}: {done.stderr.strip()}")
