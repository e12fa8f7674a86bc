"""Notifications to a service manager: sd_notify(3), datagrams to the socket of NOTIFY_SOCKET."""

import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import Final

LOG: Final = logging.getLogger(__name__)


class Notifier:
    """Sends the server's state to the service manager that started this process, if any."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        name = environment.get("NOTIFY_SOCKET", "")
        #: A leading @ means an abstract socket.
        self._address = f"\0{name[1:]}" if name.startswith("@") else name
        usec, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
        is_watched = bool(name) and usec.isdecimal() and int(usec) > 0 and pid in ("", str(os.getpid()))
        #: Seconds between two watchdog messages: half of the allowed interval. None without a watchdog.
        self.watchdog_interval: Final = int(usec) / 2e6 if is_watched else None

    def ready(self, status: str) -> None:
        """Report that the server accepts clients."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Report that the server reloads its settings; `ready` ends that state."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Report that the server is shutting down."""
        self._send("STOPPING=1", "STATUS=draining")

    def alive(self) -> None:
        """Send a watchdog message."""
        self._send("WATCHDOG=1")

    def _send(self, *words: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.sendto("\n".join(words).encode(), self._address)
        except OSError as error:
            # The server continues; the service manager detects the missing message.
            LOG.warning("the notification %s to the service manager failed: %s", words[0], error.strerror)
