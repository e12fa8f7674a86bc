"""The life of one server: start, drain, stop. The only module that touches the native engine."""

import logging
import os
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from objmapper_server._engine import Engine
from objmapper_server._engine import __version__ as engine_version
from objmapper_server.access_log import AccessLog
from objmapper_server.concurrency import TRANSPORTS, Concurrency, Transport, resolve_model
from objmapper_server.config import Config
from objmapper_server.engine_settings import engine_settings, settings_of_sockets
from objmapper_server.errors import NotRunning, warn_renamed
from objmapper_server.event_log import Denial, EventLog
from objmapper_server.origin_statistics import OriginStatistics
from objmapper_server.process.signals import serve_until_signal
from objmapper_server.process.socket_activation import ADMIN, NO_SOCKETS, Sockets
from objmapper_server.request_records import Recorded, RecordedRequest
from objmapper_server.settings.access_rules import AccessRules
from objmapper_server.settings.reload import Reloaded
from objmapper_server.statistics import LatencyCounts, Statistics
from objmapper_server.storage_failures import StorageFailure

if TYPE_CHECKING:
    from objmapper_server.admin.server import Admin

LOG: Final = logging.getLogger(__name__)


class Server:
    """Serves one root with the settings of its `Config`; a ``with`` block starts and stops it.

    `sockets` are sockets that are open already (`inherited_sockets`): they take the places of those that the
    settings name, and stay the caller's to close. OSError where one is for UDP and the settings have no `udp`.
    """

    def __init__(self, config: Config, sockets: Sockets = NO_SOCKETS) -> None:
        self._sockets = sockets
        self._socket_settings = settings_of_sockets(sockets, config)
        self.config = config.replace("the service manager", **self._socket_settings)
        #: The id of the process that started the server.
        self._process: int | None = None
        self._engine: Engine | None = None
        self._admin: Admin | None = None
        self._access_log: AccessLog | None = None
        self._event_log: EventLog | None = None
        self._draining = False
        self._change_lock = threading.RLock()

    def __repr__(self) -> str:
        if self._process not in {None, os.getpid()}:
            return f"<Server of {self.config.root}: of process {self._process}>"
        listening = ", ".join(self.addresses.values()) if self._engine else "not started"
        return f"<Server of {self.config.root}: {listening}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Bind every transport and the admin endpoint, and serve.

        Raises OSError with the address or path if one fails; then nothing is served.
        """
        if self._engine is not None:
            raise RuntimeError("this server was started already")
        if self.config.unix is not None and self.config.sources["unix"] == "default":
            make_private_directory(self.config.unix.parent)
        engine = Engine(*engine_settings(self.config, self._sockets))
        self._process = os.getpid()
        self._draining = False
        engine.set_rules(AccessRules.from_config(self.config))
        try:
            engine.start()
            self._engine = engine
            if self.config.admin is not None:
                from objmapper_server.admin.server import Admin

                self._admin = Admin(self, self.config.admin, self._sockets.get(ADMIN))
                self._admin.start()
            if self.config.access_log is not None:
                engine.sample_requests(self.config.access_log_sample)
                self._access_log = AccessLog(self.config.access_log, self._records_after)
            self._event_log = EventLog(self)
        except BaseException:
            self._engine = engine
            # The error's traceback keeps this frame, which would keep the engine and its descriptor of the root.
            del engine
            self.stop()
            raise

    def drain(self, timeout: float | None = None) -> bool:
        """Accept no more connections, and wait for the pending requests, by default `shutdown_grace` seconds.

        Returns False if that takes longer. The admin endpoint continues, and reports that the server is not ready.
        """
        with self._change_lock:
            # A pending reload finishes first; a later one finds the server draining.
            engine = self._running_engine()
            self._draining = True
        return engine.drain(self.config.shutdown_grace if timeout is None else timeout)

    def stop(self) -> None:
        """End the pending requests, close every socket and remove the Unix socket. May be called twice.

        Does nothing in a fork of the process that started the server: threads, sockets and files are that process's.
        """
        if self._process not in {None, os.getpid()}:
            return
        with self._change_lock:
            # A pending change finishes first; a later one finds a stopped server without logs.
            logs, self._access_log, self._event_log = (self._access_log, self._event_log), None, None
            engine, admin = self._engine, self._admin
            self._draining = True
        with ExitStack() as stack:
            # The stack runs all steps, last one first, even if some of them raise.
            if admin is not None:
                stack.callback(admin.stop)
            stack.callback(self._forget_engine)
            for log in logs:
                if log is not None:
                    # The log reads once more after the last request: the engine records it after the response.
                    stack.callback(log.stop)
            if engine is not None:
                stack.callback(engine.stop)

    def _forget_engine(self) -> None:
        self._engine = self._admin = None

    def serve_forever(self, ready: Callable[[], None] = lambda: None) -> bool:
        """Start, call `ready`, serve until SIGTERM or SIGINT, drain, stop; a second signal ends the drain.

        SIGHUP reads the settings again and reopens the access log. Returns whether all pending requests were finished.
        Call it from the main thread, before the program starts others: it blocks signals and waits for them, without
        handlers.
        """
        return serve_until_signal(self, ready)

    @property
    def addresses(self) -> Mapping[str, str]:
        """Transport → the address on which it listens; empty before the start."""
        bound = {} if self._engine is None else self._engine.addresses
        return {transport: bound[transport] for transport in TRANSPORTS if transport in bound}

    @property
    def admin_address(self) -> str | None:
        """The admin endpoint's ``http://HOST:PORT`` or ``unix:/PATH``; None without an endpoint."""
        return None if self._admin is None else self._admin.address

    @property
    def notices(self) -> tuple[str, ...]:
        """Notices of the start, one line each: limits adjusted to the machine, and leftovers found."""
        return tuple(self._running_engine().notices())

    def statistics(self) -> Statistics:
        """Return the current statistics."""
        return Statistics.from_snapshot(self._running_engine().statistics())

    def latency_counts(self, bounds_us: Sequence[float]) -> tuple[LatencyCounts, ...]:
        """Return the cumulative counts of latencies since start for these bounds (microseconds, ascending)."""
        return tuple(LatencyCounts.from_native(each) for each in self._running_engine().counted_up_to(bounds_us))

    def slow_requests(self) -> tuple[RecordedRequest, ...]:
        """Return the slowest requests of the last minute, slowest first, at most 32."""
        return tuple(RecordedRequest.from_native(each) for each in self._running_engine().slow_requests())

    def watch_requests(self, slower_than: float, for_seconds: float = 5.0) -> None:
        """Record requests slower than this (seconds) for some seconds; of several watchers the shortest applies."""
        self._running_engine().watch_requests(slower_than, for_seconds)

    def recorded_requests(self, after: int = 0) -> Recorded:
        """Return the records after the number `after`: for watchers, and the sample of the access log."""
        last, native = self._running_engine().recorded_requests(after)
        return Recorded(last=last, requests=tuple(RecordedRequest.from_native(each) for each in native))

    def _records_after(self, after: int) -> Sequence[Mapping[str, Any]]:
        return self._running_engine().recorded_requests(after)[1]

    def take_denial(self) -> Denial | None:
        """Return the first denial to a user since the previous call; None if there was none. For the log."""
        native = self._running_engine().take_refusal()
        return None if native is None else Denial(**native)

    def take_storage_failure(self) -> StorageFailure | None:
        """Return the first storage failure since the previous call; None if there was none."""
        native = self._running_engine().take_failure()
        return None if native is None else StorageFailure(**native)

    def times(self, bounds_us: Sequence[float]) -> tuple[LatencyCounts, ...]:
        """Return `latency_counts(bounds_us)`. Deprecated: use that name."""
        warn_renamed("Server.times", "Server.latency_counts")
        return self.latency_counts(bounds_us)

    def take_refusal(self) -> Denial | None:
        """Return `take_denial()`. Deprecated: use that name."""
        warn_renamed("Server.take_refusal", "Server.take_denial")
        return self.take_denial()

    def take_failure(self) -> StorageFailure | None:
        """Return `take_storage_failure()`. Deprecated: use that name."""
        warn_renamed("Server.take_failure", "Server.take_storage_failure")
        return self.take_storage_failure()

    def origin_statistics(self) -> OriginStatistics | None:
        """Return the figures of the origins and of the disk cache; None without an origin."""
        figures = self._running_engine().origins()
        return None if figures is None else OriginStatistics.from_figures(figures)

    @property
    def root_problem(self) -> str | None:
        """The reason why the root cannot be served; None if it can."""
        return self._running_engine().root_problem()

    @property
    def draining(self) -> bool:
        """Whether the server drains, and accepts no more connections."""
        return self._draining

    @property
    def version(self) -> str:
        """The version of the engine and of objmapper."""
        return engine_version

    def set_concurrency(self, **models: Concurrency) -> None:
        """Change the models of transports while they serve, without dropping a connection.

        Raises ValueError for a transport that is not served, for an unknown model, and while the server drains; then
        nothing has changed.
        """
        with self._change_lock:
            served = self._running_engine().addresses
            if self._draining:
                raise ValueError("the server drains, so its models cannot change")
            wanted = {}
            for name, model in models.items():
                transport = next((known for known in TRANSPORTS if known == name and known in served), None)
                if transport is None:
                    raise ValueError(f"expected a transport that is served: {', '.join(served)} (got {name!r})")
                wanted[transport] = resolve_model(Concurrency(model), transport)
            self._switch_models(wanted)
            self.config = self.config.replace("set while it runs", concurrency_model={**self.config.models, **wanted})

    def _switch_models(self, wanted: Mapping[Transport, Concurrency]) -> None:
        """Change all these models, or none: if one change fails, the earlier ones are undone."""
        with ExitStack() as rollback:
            for transport, model in wanted.items():
                before = self.config.models[transport]
                self._running_engine().set_concurrency(transport, model)
                rollback.callback(self._switch_back, transport, before)
            rollback.pop_all()
        for transport, model in wanted.items():
            LOG.info("%s is served by %s now", transport, model)

    def _switch_back(self, transport: Transport, model: Concurrency) -> None:
        try:
            self._running_engine().set_concurrency(transport, model)
        except Exception as error:
            LOG.error("%s cannot return to the model %s: %s", transport, model, error)

    def reload(self) -> Reloaded:
        """Read the file and the environment again, and apply the settings that can change without a restart.

        The flags stay the same. The settings of the file replace changes made while the server runs. Raises
        `ConfigError` for an invalid setting, ValueError if a program set the settings or the server drains, and OSError
        if a new model lacks threads or descriptors; then nothing has changed. Reopens the access log in any case, so
        that its file can be renamed before.
        """
        with self._change_lock:
            try:
                self._running_engine()
                if self._access_log is not None:
                    self._access_log.reopen()
                if self._draining:
                    raise ValueError("the server drains, so its settings cannot change")
                # The sockets of a service manager stay the same.
                new_config = self.config.reloaded().with_settings_from(self.config, self._socket_settings)
                found = Reloaded.compare(self.config, new_config)
                self._apply(self.config.with_settings_from(new_config, found.changed))
            except Exception as error:
                LOG.error("reload failed, settings unchanged: %s", error)
                raise
            LOG.info("settings reloaded, %s", found)
            return found

    # These take the engine from `self` at each step: a frame that an error's traceback keeps would keep it alive.
    def _apply(self, new_config: Config) -> None:
        """Apply settings that differ only in reloadable ones: all of them, or none."""
        before = self.config
        # Transports that are new need a restart.
        served = self.addresses
        models = {name: new for name, new in new_config.models.items() if name in served and new != before.models[name]}
        with ExitStack() as rollback:
            self._set_limits(new_config)
            rollback.callback(self._set_limits, before)
            # Last, because only this step can fail, for lack of threads or descriptors.
            self._switch_models(models)
            self.config = new_config
            rollback.pop_all()

    def _set_limits(self, config: Config) -> None:
        self._running_engine().set_limits(config)
        self._running_engine().set_rules(AccessRules.from_config(config))

    def _running_engine(self) -> Engine:
        if self._engine is None:
            raise NotRunning
        return self._engine


def make_private_directory(path: Path) -> None:
    """Make the directory of the default socket; raises PermissionError if it belongs to another user."""
    path.mkdir(mode=0o700, exist_ok=True)
    # Under /tmp another user may have made it first: a link, or a directory in which that user can replace a socket.
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(20, "the socket's directory is not a directory", str(path))
    if found.st_uid != os.geteuid():
        raise PermissionError(1, "the socket's directory belongs to another user", str(path))
    if found.st_mode & 0o022:
        raise PermissionError(1, "other users may write to the socket's directory; chmod 700 it", str(path))
