"""Words to a service manager: sd_notify(3), which is a datagram to the socket that NOTIFY_SOCKET names."""

import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import Final

LOG: Final = logging.getLogger(__name__)


class Notifier:
    """Tells the service manager that started this process what it does, where there is one."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        name = environment.get("NOTIFY_SOCKET", "")
        #: A name that begins with @ is an abstract one.
        self._address = f"\0{name[1:]}" if name.startswith("@") else name
        usec, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
        is_watched = bool(name) and usec.isdecimal() and int(usec) > 0 and pid in ("", str(os.getpid()))
        #: Seconds between two signs of life: half of what is allowed. None without a watchdog.
        self.watchdog_interval: Final = int(usec) / 2e6 if is_watched else None

    def ready(self, status: str) -> None:
        """Say that clients are served."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that the settings are being read; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Say that the end has begun."""
        self._send("STOPPING=1", "STATUS=draining")

    def alive(self) -> None:
        """Give a sign of life."""
        self._send("WATCHDOG=1")

    def _send(self, *words: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.sendto("\n".join(words).encode(), self._address)
        except OSError as error:
            # The server serves on; the service manager reports that the message did not come.
            LOG.warning("the service manager was not told %s: %s", words[0], error.strerror)
