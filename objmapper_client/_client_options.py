"""The options of both clients and the pool that they make from them."""

import os

from objmapper_client._connection.pool import Pool, Runtime
from objmapper_client._operations.transport_operations import operations_for
from objmapper_client._runtime import fork
from objmapper_client.address import Address, default_address, parse
from objmapper_client.errors import LocalProtocolError, ObjmapperError
from objmapper_client.object import Object
from objmapper_client.protocol.v1 import Mode

CHUNK = 1 << 20
#: Maximum of `wait=`: a week in seconds.
MAX_WAIT = 604_800.0
#: Entries of a page of a list.
PAGE = 1000
# Defined here, because in the clients' classes `list` is a method.
Results = list[Object | ObjmapperError]


#: Maximum time limit in seconds (23 days): poll(2) takes at most 24 days. Longer limits are reduced to it.
_MAX_SECONDS = 2_000_000.0


def _seconds(name: str, value: float) -> float:
    # `not value > 0` also rejects NaN.
    if not value > 0:
        raise ValueError(f"{name}: expected seconds, more than 0 (got {value!r})")
    return value


class ClientOptions:
    """The options of a client. Pickling keeps only these: a copy in another process makes its own connections."""

    def __init__(
        self,
        address: str | os.PathLike[str] | Address | None = None,
        *,
        timeout: float = 30.0,
        connect_timeout: float = 5.0,
        max_connections: int = 8,
        attempts: int = 3,
        mode: Mode | str | None = None,
        wait: float = 0.0,
    ) -> None:
        fork.install_hook()
        if max_connections < 1 or attempts < 1:
            raise ValueError(f"max_connections and attempts must be >= 1, got {max_connections} and {attempts}")
        if not 0 <= wait <= MAX_WAIT:
            raise ValueError(f"wait: expected 0 to {MAX_WAIT:.0f} seconds (got {wait})")
        self.address: Address = default_address() if address is None else parse(address)
        self.timeout = _seconds("timeout", timeout)
        self.connect_timeout = _seconds("connect_timeout", connect_timeout)
        self.max_connections = max_connections
        self.attempts = attempts
        self.wait = wait
        self._operations = operations_for(self.address)
        self.mode: Mode = self._operations.best_mode(self.address) if mode is None else Mode.from_name(mode)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.address)!r}, timeout={self.timeout}, mode={self.mode.name.lower()!r})"

    def __getstate__(self) -> dict[str, object]:
        names = ("address", "timeout", "connect_timeout", "max_connections", "attempts", "mode", "wait")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _mode(self, mode: Mode | str | None) -> Mode:
        return self.mode if mode is None else Mode.from_name(mode)

    @staticmethod
    def _check_chunk_size(chunk_size: int) -> None:
        if chunk_size < 1:
            raise LocalProtocolError(f"chunk_size must be >= 1, got {chunk_size}")

    def _make_pool(self, runtime: Runtime) -> Pool:
        pool = self._operations.make_pool(
            self.address,
            runtime,
            max_connections=self.max_connections,
            attempts=self.attempts,
            timeout=min(self.timeout, _MAX_SECONDS),
            connect_timeout=min(self.connect_timeout, _MAX_SECONDS),
        )
        pool.wait = self.wait
        return pool
