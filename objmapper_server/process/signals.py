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


def serve_until_signal(server: "Server", ready: Callable[[], None]) -> bool:
    """Start, call `ready`, serve, drain, stop; see `Server.serve_forever`."""
    notifier = Notifier(os.environ)
    with _blocked_signals(STOP_SIGNALS | {RELOAD_SIGNAL}), server:
        ready()
        status = f"serving {' '.join(server.addresses.values())}"
        notifier.ready(status)
        while _next_signal(server, notifier) == RELOAD_SIGNAL:
            notifier.reloading()
            # The server has logged the error; a failed reload does not stop it.
            with contextlib.suppress(Exception):
                server.reload()
            notifier.ready(status)
        notifier.stopping()
        return _drain(server)


def _next_signal(server: "Server", notifier: Notifier) -> int:
    """Wait for a signal. Meanwhile send watchdog messages, which stop if the engine is deadlocked."""
    wanted = STOP_SIGNALS | {RELOAD_SIGNAL}
    if notifier.watchdog_interval is None:
        return signal.sigwait(wanted)
    while True:
        server.statistics()
        notifier.alive()
        if (signal_info := signal.sigtimedwait(wanted, notifier.watchdog_interval)) is not None:
            return signal_info.si_signo


def _drain(server: "Server") -> bool:
    finished: list[bool] = []
    drain_thread = threading.Thread(target=lambda: finished.append(server.drain()), name="drain", daemon=True)
    try:
        start_thread(drain_thread)
    except OSError:
        # At a thread limit: drain here, where a second signal cannot end the drain early.
        return server.drain()
    while drain_thread.is_alive():
        if signal.sigtimedwait(STOP_SIGNALS, SIGNAL_POLL_INTERVAL) is not None:
            return False
    return finished == [True]


@contextmanager
def _blocked_signals(signals: frozenset[signal.Signals]) -> Iterator[None]:
    """Block signals in this thread and those that it starts, so that they stay pending until it waits for them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        # Discard signals that came during the drain: they would end the process before it reports the drain's result.
        while signal.sigtimedwait(signals - before, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
