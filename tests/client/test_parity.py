"""The two clients are one interface: verb by verb the same arguments, types, words, results and errors."""

import inspect
import os
import pickle
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from objmapper_client import AsyncClient, Client, Object
from objmapper_client._operations import upload_source as sources
from objmapper_server import Config, Server
from tests.support.both_clients import Call, Caller, call_in_task, call_in_thread, call_in_uvloop_task

TYPES_OF_CHECKERS = {"WriteableBuffer": memoryview, "Data": sources.Data, "AsyncData": sources.AsyncData}
OPERATIONS = [name for name, _ in inspect.getmembers(Client, inspect.isfunction) if not name.startswith("_")]


def hints(client: type, name: str) -> dict[str, object]:
    found = get_type_hints(getattr(client, name), localns=TYPES_OF_CHECKERS)
    return {argument: plain(kind) for argument, kind in found.items()}


def plain(kind: object) -> object:
    """A type, in a form in which both clients have to agree."""
    if get_origin(kind) in (Generator, AsyncGenerator):
        return "iterator", get_args(kind)[0]
    return sources.Data if kind == sources.AsyncData else kind


def test_they_have_the_same_verbs() -> None:
    assert {"open", "open_many", "read", "readinto", "stream", "stat", "list", "put", "delete", "close"} == set(
        OPERATIONS
    )
    assert [name for name, _ in inspect.getmembers(AsyncClient, inspect.isfunction) if name[0] != "_"] == OPERATIONS
    assert inspect.signature(Client) == inspect.signature(AsyncClient)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_verb_has_the_same_arguments_types_and_words(name: str) -> None:
    ours, theirs = getattr(Client, name), getattr(AsyncClient, name)
    for one, other in zip(
        inspect.signature(ours).parameters.values(), inspect.signature(theirs).parameters.values(), strict=True
    ):
        assert (one.name, one.kind, one.default) == (other.name, other.kind, other.default)
    assert hints(Client, name) == hints(AsyncClient, name)
    is_iterator = inspect.isgeneratorfunction(ours)
    assert inspect.isasyncgenfunction(theirs) == is_iterator
    assert inspect.iscoroutinefunction(theirs) != is_iterator
    assert ours.__doc__ == theirs.__doc__


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("root")
    for name, size in {"small": 1000, "large": 3 << 20}.items():
        (root / name).write_bytes(os.urandom(size))
        os.utime(root / name, (1_600_000_000, 1_600_000_000))
    (root / "directory").mkdir()
    unix = tmp_path_factory.mktemp("run") / "o.sock"
    with Server(Config(root=root, unix=unix, tcp="127.0.0.1:0", admin=None, writable=True)) as server:
        # What a first connection has the server open is no test's leak.
        for address in server.addresses.values():
            with Client(address) as client:
                client.read("/small")
        yield server


#: Calls that leave a server as they found it: every verb, and what is wrong with one.
CALLS: list[tuple[Call, ...]] = [
    (("open", "/small"),),
    (("open", "/large", {"mode": "copy"}),),
    (("open", "/none"),),
    (("open", "/directory"),),
    (("open", "/../x"),),
    (("open", ""),),
    (("open", "x" * 5000),),
    (("open", "/small", {"mode": "fdpass"}),),
    (("open", "/small", {"mode": "carrier pigeon"}),),
    (("open_many", ["/small", "/none", "", "/large"]),),
    (("read", "/large", {"offset": 10, "length": 1 << 20}),),
    (("read", "/small", {"offset": -1}),),
    (("readinto", "/large", bytearray(2 << 20), {"offset": 5}),),
    (("stream", "/large", {"chunk_size": 100_000}),),
    (("stream", "/large", {"chunk_size": 0, "mode": "splice"}),),
    (("stream", "/none"),),
    (("stat", "/small"),),
    (("stat", "/none"),),
    (("list", "/"),),
    (("list", "/", {"page_size": 1}),),
    (("list", "/", {"page_size": 0}),),
    (("put", "/new", b"x" * 70_000), ("stat", "/new"), ("delete", "/new")),
    (("put", "/new", [b"a", b"b"], {"length": 3}),),
    (("put", "/small", b"x", {"if_none_match": "*"}),),
    (("put", "/small", b"x", {"if_match": "0" * 16}),),
    (("put", "/missing/new", b"x"),),
    (("put", "/directory", b"x"),),
    (("put", "/new", 5),),
    (("put", "/new", "/no/such/file"),),
    (("delete", "/none"),),
    (("delete", "/small", {"if_match": "0" * 16}),),
]


def outcome(call: Caller, address: str, calls: tuple[Call, ...]) -> list[object]:
    """What the verbs give, or the error, in a form that can be compared."""
    # A caller takes arguments apart.
    fresh = [
        tuple(each.copy() if isinstance(each, dict | bytearray) else each for each in operation) for operation in calls
    ]
    try:
        return [comparable(each) for each in call(address, *fresh)]
    except Exception as error:
        return [type(error), str(error)]


def comparable(result: Any) -> object:
    if isinstance(result, Object):
        with result:
            return (result.uri, result.size, result.mode, result.etag, result.mtime, result.read())
    if isinstance(result, Exception):
        return type(result), str(result)
    if hasattr(result, "_asdict"):
        # Two puts are two versions, perhaps at two times.
        return {**result._asdict(), "etag": len(result.etag), "mtime": 0} if hasattr(result, "etag") else result
    if isinstance(result, list):
        return b"".join(result) if result and isinstance(result[0], bytes) else [comparable(each) for each in result]
    return result


@pytest.mark.parametrize("transport", ["unix", "tcp"])
@pytest.mark.parametrize("calls", CALLS, ids=lambda calls: " ".join(str(each)[:30] for each in calls[0]))
def test_the_same_call_has_the_same_result_or_error(server: Server, transport: str, calls: tuple[Call, ...]) -> None:
    address = server.addresses[transport]
    expected = outcome(call_in_thread, address, calls)
    assert outcome(call_in_task, address, calls) == expected
    assert outcome(call_in_uvloop_task, address, calls) == expected


@pytest.mark.parametrize(
    "given",
    [
        {"timeout": 0},
        {"connect_timeout": -1},
        {"max_connections": 0},
        {"attempts": 0},
        {"mode": "x"},
        {"address": "x://"},
    ],
)
def test_what_neither_takes(given: dict[str, Any]) -> None:
    def refusal(client: Callable[..., object]) -> tuple[type, str]:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - which one and what it says is compared
            client(**({"address": "unix:/s"} | given))
        return caught.type, str(caught.value)

    assert refusal(Client) == refusal(AsyncClient)


def test_both_travel_by_their_arguments_and_say_what_they_are() -> None:
    options: dict[str, Any] = {
        "timeout": 3.0,
        "connect_timeout": 1.0,
        "max_connections": 2,
        "attempts": 1,
        "mode": "copy",
    }
    for client in (Client("tcp://h:1", **options), AsyncClient("tcp://h:1", **options)):
        copy = pickle.loads(pickle.dumps(client))
        assert type(copy) is type(client)
        assert repr(copy) == repr(client) == f"{type(client).__name__}('tcp://h:1', timeout=3.0, mode='copy')"
        assert copy.__getstate__() == client.__getstate__()
