"""Addresses as people write them."""

import os
import pickle
from pathlib import Path

import pytest

from objmapper_client import AddressError, TcpAddress, UdpAddress, UnixAddress, default_address, parse


@pytest.mark.parametrize(
    ("text", "address", "canonical"),
    [
        ("unix:/run/o.sock", UnixAddress("/run/o.sock"), "unix:/run/o.sock"),
        ("unix:///run/o.sock", UnixAddress("/run/o.sock"), "unix:/run/o.sock"),
        ("/run/o.sock", UnixAddress("/run/o.sock"), "unix:/run/o.sock"),
        ("o.sock", UnixAddress("o.sock"), "unix:o.sock"),
        ("tcp://host:1", TcpAddress("host", 1), "tcp://host:1"),
        ("tcp://host", TcpAddress("host", 9999), "tcp://host:9999"),
        ("tcp://[::1]:2", TcpAddress("::1", 2), "tcp://[::1]:2"),
        ("tcp://[::1]", TcpAddress("::1"), "tcp://[::1]:9999"),
        ("udp://host", UdpAddress("host", 9998), "udp://host:9998"),
    ],
)
def test_an_address_is_understood(text: str, address: object, canonical: str) -> None:
    assert parse(text) == address
    assert str(parse(text)) == canonical
    assert parse(canonical) == address
    assert pickle.loads(pickle.dumps(address)) == address
    assert hash(parse(text)) == hash(address)


@pytest.mark.parametrize(
    "text",
    ["", "unix:", "tcp://", "tcp://:1", "tcp://h:x", "tcp://h:65536", "tcp://h:-1", "tcp://::1", "tcp://[::1",
     "http://h", "host:99", "unix:/" + "n" * 107, "tcp://h/x"],
)  # fmt: skip
def test_an_invalid_address_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_addresses_of_different_kinds_differ() -> None:
    assert TcpAddress("h", 1) != UdpAddress("h", 1)


def test_the_default_is_the_environments_server_or_the_users_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OBJMAPPER_SERVER", "tcp://h:5")
    assert default_address() == TcpAddress("h", 5)
    monkeypatch.delenv("OBJMAPPER_SERVER")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert default_address() == UnixAddress("/run/user/7/objmapper/objmapper.sock")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_address() == UnixAddress("/run/objmapper/objmapper.sock")


def test_a_directory_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OBJMAPPER_SERVER", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    user = 54321
    monkeypatch.setattr(os, "geteuid", lambda: user)
    directory = Path(f"/tmp/objmapper-{user}")
    assert default_address() == UnixAddress(f"{directory}/objmapper.sock")
    directory.mkdir()
    try:
        with pytest.raises(AddressError, match="private"):
            default_address()
    finally:
        directory.rmdir()
