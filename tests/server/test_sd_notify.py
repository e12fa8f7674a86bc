"""Notifications to a service manager: ready, reloading, stopping, and the watchdog."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from objmapper_server.process.sd_notify import Notifier
from tests.support.raw_client import COPY, OK, RawClient


class FakeServiceManager:
    """The side of a service manager that is notified."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(30)
        self.socket.bind(str(path))

    def message(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.socket.recv(4096).decode().splitlines())

    def next_without(self, ignored_key: str) -> dict[str, str]:
        while ignored_key in (message := self.message()):
            pass
        return message


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[FakeServiceManager]:
    manager = FakeServiceManager(tmp_path / "notify")
    with manager.socket:
        yield manager


def test_the_service_manager_is_notified_of_each_state(
    root: Path,
    tmp_path: Path,
    manager: FakeServiceManager,
    environment: dict[str, str],
    start: Callable[..., subprocess.Popen[str]],
) -> None:
    environment |= {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "200000"}
    process = start(sys.executable, "-m", "objmapper_cli", "serve", root, "--unix", "s", "--no-admin")
    assert manager.message() == {"READY": "1", "STATUS": f"serving unix:{tmp_path}/s"}
    with RawClient(f"unix:{tmp_path}/s") as v1:
        assert v1.ask(COPY, "/a").status == OK
    for _ in range(3):
        assert manager.message() == {"WATCHDOG": "1"}
    process.send_signal(signal.SIGHUP)
    reloading = manager.next_without("WATCHDOG")
    assert reloading["RELOADING"] == "1"
    assert 0 <= time.monotonic_ns() // 1000 - int(reloading["MONOTONIC_USEC"]) < 60_000_000
    assert manager.message()["READY"] == "1"
    process.send_signal(signal.SIGTERM)
    assert manager.next_without("WATCHDOG") == {"STOPPING": "1", "STATUS": "draining"}
    assert process.wait(30) == 0


def test_a_manager_that_is_gone_stops_nothing(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "none")}).ready("serving")
    assert caplog.messages == ["the notification READY=1 to the service manager failed: No such file or directory"]
    Notifier({}).ready("without a socket")
    assert len(caplog.messages) == 1


def test_an_abstract_socket_is_notified_and_a_foreign_watchdog_ignored() -> None:
    name = f"objmapper-notify-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.settimeout(10)
        notifier = Notifier({"NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"})
        assert notifier.watchdog_interval is None
        notifier.stopping()
        assert listener.recv(100).startswith(b"STOPPING=1\n")
