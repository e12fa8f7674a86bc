"""Which model a transport gets."""

import pytest

from objmapper_server.concurrency import MODEL_ALIASES, TRANSPORTS, Concurrency, Transport, resolve_model


def test_the_names_are_the_documented_ones() -> None:
    assert list(Concurrency) == [
        "auto",
        "by-transport",
        "thread-per-connection",
        "thread-pool",
        "work-stealing",
        "epoll",
    ]


def test_by_transport_gives_descriptors_a_thread_each_and_bytes_a_pool() -> None:
    assert resolve_model(Concurrency.BY_TRANSPORT, "unix") is Concurrency.THREAD_PER_CONNECTION
    assert resolve_model(Concurrency.BY_TRANSPORT, "tcp") is Concurrency.THREAD_POOL
    assert resolve_model(Concurrency.BY_TRANSPORT, "udp") is Concurrency.EPOLL


def test_without_connections_there_is_no_thread_for_each() -> None:
    with pytest.raises(ValueError, match="udp has no connections"):
        resolve_model(Concurrency.THREAD_PER_CONNECTION, "udp")


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("model", Concurrency)
def test_the_chosen_model_is_concrete(model: Concurrency, transport: Transport) -> None:
    if (model, transport) == (Concurrency.THREAD_PER_CONNECTION, "udp"):
        pytest.skip("refused")
    chosen = resolve_model(model, transport)
    assert chosen not in MODEL_ALIASES
    assert model in MODEL_ALIASES or chosen is model
