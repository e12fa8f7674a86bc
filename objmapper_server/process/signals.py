"""A server in the foreground of a process: until a signal ends it, and reading its settings again when one says so."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from objmapper_server.process.sd_notify import Notifier
from objmapper_server.threads import start_thread

if TYPE_CHECKING:
    from objmapper_server.server import Server

STOP_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT})
RELOAD_SIGNAL: Final = signal.SIGHUP
#: How often a drain looks whether it has been told to hurry.
SECOND_THOUGHTS: Final = 0.05


def serve_until_told(server: "Server", ready: Callable[[], None]) -> bool:
    """Start, call `ready`, serve, drain, stop; see `Server.serve_forever`."""
    manager = Notifier(os.environ)
    with _held_back(STOP_SIGNALS | {RELOAD_SIGNAL}), server:
        ready()
        status = f"serving {' '.join(server.addresses.values())}"
        manager.ready(status)
        while _next_signal(server, manager) == RELOAD_SIGNAL:
            manager.reloading()
            # The server has logged what is wrong; a reload never ends it.
            with contextlib.suppress(Exception):
                server.reload()
            manager.ready(status)
        manager.stopping()
        return _drain(server)


def _next_signal(server: "Server", manager: Notifier) -> int:
    """Wait for a signal; give signs of life meanwhile, as long as the engine's locks can be had."""
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
        # At a limit: without a thread a second signal cannot cut the drain short.
        return server.drain()
    while draining.is_alive():
        if signal.sigtimedwait(STOP_SIGNALS, SECOND_THOUGHTS) is not None:
            return False
    return finished == [True]


@contextmanager
def _held_back(signals: frozenset[signal.Signals]) -> Iterator[None]:
    """Hold signals back in this thread and those that it starts: they stay pending until this thread waits for them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        # A signal that came during the drain would end the process now, before it has said how the drain ended.
        while signal.sigtimedwait(signals - before, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
