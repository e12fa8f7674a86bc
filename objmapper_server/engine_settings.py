"""The settings in the engine's form: a `Config` with resolved hosts, and the inherited sockets."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from objmapper_server.concurrency import Transport
from objmapper_server.config import Config
from objmapper_server.process.socket_activation import ADMIN, Sockets, address_of
from objmapper_server.settings.listen_address import ListenAddress
from objmapper_server.settings.origin import default_disk_cache


def engine_settings(config: Config, sockets: Sockets) -> tuple[Config, Mapping[Transport, str], Sequence[int]]:
    """Return the arguments of `Engine`: the settings with all hosts resolved, the models, and the inherited sockets.

    A transport with an inherited socket has no address in the settings. Raises OSError for an unknown host.
    """
    descriptors = {name: sock.fileno() for name, sock in sockets.items() if name != ADMIN}
    values: dict[str, object] = {
        "unix": None if "unix" in descriptors else config.unix,
        "tcp": None if "tcp" in descriptors else _numeric(config.tcp),
        "udp": None if "udp" in descriptors else _numeric(config.udp),
    }
    if config.origins and config.disk_cache is None:
        values["disk_cache"] = default_disk_cache()
    return config.replace("the machine", **values), config.models, tuple(descriptors.values())


def _numeric(listen: str | None) -> str | None:
    return None if listen is None else str(ListenAddress.parse(listen, 0).resolve())


def settings_of_sockets(sockets: Sockets, config: Config) -> dict[str, object]:
    """Return the settings that the sockets replace; raises OSError for a datagram socket if `udp` is off."""
    values: dict[str, object] = {name: address_of(sock) for name, sock in sockets.items()}
    if "udp" in values and config.udp is None:
        # Every host that reaches a UDP port may read every object, so a line in a unit is not enough to turn it on.
        raise OSError(
            f'socket activation: got a datagram socket ({values["udp"]}), but udp is off; set udp = "{values["udp"]}" '
            "(--udp), or remove ListenDatagram= from the socket unit"
        )
    if "unix" in values:
        values["unix"] = Path(str(values["unix"]).removeprefix("unix:"))
    elif values.keys() - {ADMIN} and config.sources["unix"] == "default":
        # The sockets replace the default Unix socket.
        values["unix"] = None
    return values
