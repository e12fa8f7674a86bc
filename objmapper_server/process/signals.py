"""Runs a server in the foreground of a process: stops it on SIGTERM or SIGINT, and reloads its settings on SIGHUP."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from objmapper_server.process.sd_notify import Notifier
from objmapper_server.start_thread import start_thread

if TYPE_CHECKING:
    from objmapper_server.server import Server

STOP_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT})
RELOAD_SIGNAL: Final = signal.SIGHUP
#: Seconds between two checks for a second signal during a drain.
SIGNAL_POLL_INTERVAL: Final = 0.05


def serve_until_told(server: "Server", ready: Callable[[], None]) -> bool:
    """Start, call `ready`, serve, drain, stop; see `Server.serve_forever`."""
    manager = Notifier(os.environ)
    with _blocked(STOP_SIGNALS | {RELOAD_SIGNAL}), server:
        ready()
        status = f"serving {' '.join(server.addresses.values())}"
        manager.ready(status)
        while _next_signal(server, manager) == RELOAD_SIGNAL:
            manager.reloading()
            # The server has logged the error; a failed reload does not stop it.
            with contextlib.suppress(Exception):
                server.reload()
            manager.ready(status)
        manager.stopping()
        return _drain(server)


def _next_signal(server: "Server", manager: Notifier) -> int:
    """Wait for a signal. Meanwhile send watchdog messages, which stop if the engine is deadlocked."""
    wanted = STOP_SIGNALS | {RELOAD_SIGNAL}
    if manager.watchdog_interval is None:
        return signal.sigwait(wanted)
    while True:
        server.statistics()
        manager.alive()
        if (taken := signal.sigtimedwait(wanted, manager.watchdog_interval)) is not None:
            return taken.si_signo


def _drain(server: "Server") -> bool:
    finished: list[bool] = []
    draining = threading.Thread(target=lambda: finished.append(server.drain()), name="drain", daemon=True)
    try:
        start_thread(draining)
    except OSError:
        # At a thread limit: drain here, where a second signal cannot end the drain early.
        return server.drain()
    while draining.is_alive():
        if signal.sigtimedwait(STOP_SIGNALS, SIGNAL_POLL_INTERVAL) is not None:
            return False
    return finished == [True]


@contextmanager
def _blocked(signals: frozenset[signal.Signals]) -> Iterator[None]:
    """Block signals in this thread and those that it starts, so that they stay pending until it waits for them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        # Discard signals that came during the drain: they would end the process before it reports the drain's result.
        while signal.sigtimedwait(signals - before, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
