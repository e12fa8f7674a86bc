"""Objects over UDP arrive whole, however much is lost, doubled, damaged or out of order on the way."""

from pathlib import Path

import pytest

from objmapper_client import Client
from objmapper_client._udp import connection
from objmapper_client.protocol.udp import MAX_REMOTE_CHUNK
from tests.support.lossy_relay import lossy_relay
from tests.support.network_faults import NO_FAULTS, NetworkFaults
from tests.udp.conftest import SIZES, Read

MANY_FAULTS = NetworkFaults(loss=0.05, duplicates=0.05, reordering=0.2, corruption=0.01, delay=0.0005)


@pytest.mark.parametrize("faults", [NO_FAULTS, MANY_FAULTS], ids=["fair", "rough"])
@pytest.mark.parametrize("name", SIZES)
def test_it_arrives_whole_whatever_the_weather(
    address: str, root: Path, read: Read, faults: NetworkFaults, name: str
) -> None:
    with lossy_relay(address, faults, seed=len(name)) as relay:
        assert read(relay.address, f"/{name}", timeout=60) == (root / name).read_bytes()


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.1, 0.3])
def test_it_arrives_however_much_is_lost(address: str, root: Path, loss: float) -> None:
    """`benchmarks/udp_loss.py` does it two hundred times each, and says what it costs."""
    content = (root / "large").read_bytes()
    faults = NetworkFaults(loss=loss, duplicates=0.05, reordering=0.2)
    for seed in range(3):
        with lossy_relay(address, faults, seed) as relay, Client(relay.address) as client:
            assert client.read("/large") == content


def test_pieces_for_networks_arrive_as_well(
    address: str, root: Path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_LOOPBACK_CHUNK", MAX_REMOTE_CHUNK)
    with lossy_relay(address, MANY_FAULTS, seed=3) as relay:
        assert read(relay.address, "/medium") == (root / "medium").read_bytes()
