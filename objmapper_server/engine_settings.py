"""The settings as the engine reads them: by name, where the machine's own terms replace what a `Config` says."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from objmapper_server.concurrency import Transport
from objmapper_server.config import Config
from objmapper_server.process.socket_activation import ADMIN, Sockets, address_of
from objmapper_server.settings.listen_address import ListenAddress


def engine_settings(config: Config, sockets: Sockets) -> tuple[Config, Mapping[Transport, str], Sequence[int]]:
    """Return what `Engine` takes: the settings with every host resolved, models, and the sockets that are open already.

    A transport that has such a socket has no address in the settings. Raises OSError for an unknown host.
    """
    descriptors = {name: sock.fileno() for name, sock in sockets.items() if name != ADMIN}
    values = {
        "unix": None if "unix" in descriptors else config.unix,
        "tcp": None if "tcp" in descriptors else _numeric(config.tcp),
        "udp": None if "udp" in descriptors else _numeric(config.udp),
    }
    return config.replace("the machine", **values), config.models, tuple(descriptors.values())


def _numeric(listen: str | None) -> str | None:
    return None if listen is None else str(ListenAddress.parse(listen, 0).resolve())


def settings_of_sockets(sockets: Sockets, config: Config) -> dict[str, object]:
    """Return the settings whose places the sockets take; raises OSError where one is for UDP, which is off."""
    values: dict[str, object] = {name: address_of(sock) for name, sock in sockets.items()}
    if "udp" in values and config.udp is None:
        # Every host that reaches it may have every object: one setting more than a line in a unit asks for that.
        raise OSError(
            f'a datagram socket was handed over ({values["udp"]}), but udp is off: set udp = "{values["udp"]}" '
            "(--udp), or take ListenDatagram= out of the socket unit"
        )
    if "unix" in values:
        values["unix"] = Path(str(values["unix"]).removeprefix("unix:"))
    elif values.keys() - {ADMIN} and config.origins["unix"] == "default":
        # There is something to serve on: the default is not needed.
        values["unix"] = None
    return values
