"""The life of one server: start, drain, stop. The only module that touches the native engine."""

import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from ._engine import Engine
from .concurrency import TRANSPORTS, Concurrency, choose
from .config import Config
from .listening import ListeningPoint
from .statistics import Statistics

if TYPE_CHECKING:
    from .admin import Admin

STOP_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT})
#: The socket's file is for its owner; others come in through TCP, or through a directory that the owner opens to them.
#: How often a drain looks whether it has been told to hurry.
SECOND_THOUGHTS: Final = 0.05


class Server:
    """Serves one root as its `Config` says; in a ``with`` block from start to stop."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._engine: Engine | None = None
        self._admin: Admin | None = None

    def __repr__(self) -> str:
        listening = ", ".join(self.addresses.values()) if self._engine else "not started"
        return f"<Server of {self.config.root}: {listening}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Bind every transport and the admin endpoint, and serve.

        Raises OSError, with the address or path that it is about, where one cannot be had; then nothing is served.
        """
        if self._engine is not None:
            raise RuntimeError("this server was started already")
        if self.config.unix is not None and self.config.origins["unix"] == "default":
            make_private_directory(self.config.unix.parent)
        engine = Engine(_Settings.of(self.config))
        try:
            engine.start()
            self._engine = engine
            if self.config.admin is not None:
                from .admin import Admin

                self._admin = Admin(self, self.config.admin)
                self._admin.start()
        except BaseException:
            self._engine = self._admin = None
            engine.stop()
            raise

    def drain(self, timeout: float | None = None) -> bool:
        """Accept nothing more and wait until what is under way is finished, `shutdown_grace` seconds by default.

        Returns False where that took longer. The admin endpoint stays, and says that the server is not ready.
        """
        return self._started().drain(self.config.shutdown_grace if timeout is None else timeout)

    def stop(self) -> None:
        """End what is left, close every socket and remove the Unix socket. Can be called twice."""
        engine, admin = self._engine, self._admin
        self._engine = self._admin = None
        try:
            if engine is not None:
                engine.stop()
        finally:
            if admin is not None:
                admin.stop()

    def serve_forever(self, ready: Callable[[], None] = lambda: None) -> bool:
        """Start, call `ready`, serve until SIGTERM or SIGINT, drain, stop; a second signal cuts the drain short.

        Returns whether everything under way was finished. Only for the main thread, before there are more: signals
        are taken by waiting for them, so that no handler runs anywhere.
        """
        with _held_back(STOP_SIGNALS), self:
            ready()
            signal.sigwait(STOP_SIGNALS)
            finished: list[bool] = []
            draining = threading.Thread(target=lambda: finished.append(self.drain()), name="drain", daemon=True)
            draining.start()
            while draining.is_alive():
                if signal.sigtimedwait(STOP_SIGNALS, SECOND_THOUGHTS) is not None:
                    return False
            return finished == [True]

    @property
    def addresses(self) -> Mapping[str, str]:
        """Transport → the address that it really listens on; empty before the start."""
        bound = {} if self._engine is None else self._engine.addresses
        return {transport: bound[transport] for transport in TRANSPORTS if transport in bound}

    @property
    def admin_address(self) -> str | None:
        """The admin endpoint's ``http://HOST:PORT`` or ``unix:/PATH``; None where there is none."""
        return None if self._admin is None else self._admin.address

    @property
    def notices(self) -> tuple[str, ...]:
        """What was fitted to the machine, or found, at start: one line each."""
        return tuple(self._started().notices())

    def statistics(self) -> Statistics:
        """Return the figures of this moment."""
        return Statistics.read(self._started().statistics())

    def set_concurrency(self, **models: Concurrency) -> None:
        """Give transports other models while they serve: no connection is dropped.

        Raises ValueError for a transport that is not served or a model that there is not; then nothing has changed.
        """
        engine = self._started()
        wanted = {}
        for name, model in models.items():
            transport = next((known for known in TRANSPORTS if known == name and known in engine.addresses), None)
            if transport is None:
                raise ValueError(f"{name!r} is not served here: {', '.join(engine.addresses)} can be changed")
            wanted[transport] = choose(Concurrency(model), transport)
        for transport, chosen in wanted.items():
            engine.set_concurrency(transport, chosen)

    def _started(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("this server is not running")
        return self._engine


@dataclass(frozen=True, slots=True)
class _Settings:
    """The part of the settings that the engine reads, in its own terms."""

    root: str
    unix: str | None
    unix_mode: int
    tcp: str | None
    udp: str | None
    udp_trusted: tuple[str, ...]
    udp_rate_limit: int
    models: Mapping[str, str]
    pool_size: int
    max_queue_depth: int
    max_threads: int
    max_connections: int
    optimize_for: str
    async_storage: bool
    storage_pool_size: int
    cache_size: int
    follow_symlinks: bool
    writable: bool
    idle_timeout: float
    header_timeout: float
    request_timeout: float

    @classmethod
    def of(cls, config: Config) -> Self:
        """Return them with every host name resolved; raises OSError for one that is unknown."""
        return cls(
            root=str(config.root),
            unix=None if config.unix is None else str(config.unix),
            unix_mode=config.unix_mode,
            tcp=_numeric(config.tcp),
            udp=_numeric(config.udp),
            udp_trusted=config.udp_trusted,
            udp_rate_limit=config.udp_rate_limit,
            models={str(transport): model.value for transport, model in config.models.items()},
            pool_size=config.pool_size,
            max_queue_depth=config.max_queue_depth,
            max_threads=config.max_threads,
            max_connections=config.max_connections,
            optimize_for=config.optimize_for,
            async_storage=config.async_storage,
            storage_pool_size=config.storage_pool_size,
            cache_size=config.cache_size,
            follow_symlinks=config.follow_symlinks,
            writable=config.writable,
            idle_timeout=config.idle_timeout,
            header_timeout=config.header_timeout,
            request_timeout=config.request_timeout,
        )


def _numeric(listen: str | None) -> str | None:
    return None if listen is None else str(ListeningPoint.parse(listen, 0).resolved())


def make_private_directory(path: Path) -> None:
    """Make the directory of the default socket; raises PermissionError where it belongs to somebody else."""
    path.mkdir(mode=0o700, exist_ok=True)
    # Under /tmp anybody may have made it first: a link, or a directory in which a socket can be swapped.
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(20, "the socket's directory is not one", str(path))
    if found.st_uid != os.geteuid():
        raise PermissionError(1, "the socket's directory belongs to somebody else", str(path))
    if found.st_mode & 0o022:
        raise PermissionError(1, "others may write to the socket's directory (chmod 700 it)", str(path))


@contextmanager
def _held_back(signals: frozenset[signal.Signals]) -> Iterator[None]:
    """Hold signals back in this thread and those that it starts: they stay pending until somebody waits for them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
