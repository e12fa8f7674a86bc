"""The access rules: allowed users, groups and prefixes, and limits per user; in the forms of settings and engine."""

import grp
import pwd
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from objmapper_server.config import Config

#: (uid_t) -1 is not a user: the kernel uses it for "unchanged".
MAX_ID: Final = 2**32 - 2
KINDS: Final = ("uid", "gid")


def parse_users(value: object) -> tuple[int, ...]:
    """Return the numbers of users given by number or name, in a list or a text with commas."""
    return tuple(dict.fromkeys(_uid(name) for name in _items(value)))


def parse_groups(value: object) -> tuple[int, ...]:
    """Return the numbers of groups given by number or name, in a list or a text with commas."""
    return tuple(dict.fromkeys(_gid(name) for name in _items(value)))


def parse_prefixes(value: object) -> dict[str, tuple[str, ...]]:
    """Return URI prefix → the users and groups that may use the objects below it, as ``uid:NUMBER``, ``gid:NUMBER``.

    Accepts a mapping with values ``uid:…`` or ``gid:…`` (number or name), or texts ``PREFIX=uid:…,gid:…`` in a list or
    in one text with semicolons. A prefix without users is closed to all.
    """
    found: dict[str, tuple[str, ...]] = {}
    for uri, allowed in _pairs(value):
        prefix = _parse_prefix(uri)
        if prefix in found:
            raise ValueError(f"duplicate prefix {prefix!r}; put all its users and groups into one list")
        found[prefix] = tuple(dict.fromkeys(_parse_member(name, prefix) for name in _items(allowed)))
    return found


def _items(value: object) -> Iterator[int | str]:
    items: Iterable[object]
    if isinstance(value, str):
        items = value.split(",") if value.strip() else ()
    elif isinstance(value, Iterable) and not isinstance(value, Mapping | bytes):
        items = value
    else:
        items = (value,)
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int | str):
            raise ValueError(f"expected a number or a name (got {item!r})")
        yield item.strip() if isinstance(item, str) else item


def _pairs(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        yield from ((str(uri), allowed) for uri, allowed in value.items())
        return
    items = [item for item in value.split(";") if item.strip()] if isinstance(value, str) else value
    if not isinstance(items, Iterable):
        raise ValueError(f"expected PREFIX=uid:…,gid:… (got {items!r})")
    for item in items:
        uri, equals, allowed = str(item).strip().rpartition("=")
        if not equals:
            raise ValueError(f"prefix without users and groups: expected PREFIX=uid:…,gid:… (got {item!r})")
        yield uri, allowed


def _parse_prefix(uri: str) -> str:
    """Return a prefix with a leading slash and without a trailing one; ``/`` for all objects."""
    path = uri.removeprefix("/").removesuffix("/")
    if path and any(not name or name in {".", ".."} or "\0" in name for name in path.split("/")):
        raise ValueError(f"invalid prefix {uri!r}: no segment may be empty, '.' or '..', or contain NUL")
    return f"/{path}"


def _parse_member(text: int | str, prefix: str) -> str:
    kind, colon, name = str(text).partition(":")
    if not colon or kind not in KINDS:
        raise ValueError(f"prefix {prefix!r}: expected uid:… or gid:… with a number or a name (got {text!r})")
    return f"{kind}:{(_uid if kind == 'uid' else _gid)(name)}"


def _uid(name: int | str) -> int:
    return _parse_id(name, "user", lambda text: pwd.getpwnam(text).pw_uid)


def _gid(name: int | str) -> int:
    return _parse_id(name, "group", lambda text: grp.getgrnam(text).gr_gid)


def _parse_id(name: int | str, kind: str, look_up: Callable[[str], int]) -> int:
    if isinstance(name, str) and not re.fullmatch(r"[0-9]{1,10}", name):
        try:
            return look_up(name)
        except (KeyError, ValueError):
            raise ValueError(f"unknown {kind} {name!r}: expected a {kind} of this machine, or a number") from None
    if not 0 <= (number := int(name)) <= MAX_ID:
        raise ValueError(f"expected a {kind}'s number from 0 to {MAX_ID} (got {number})")
    return number


@dataclass(frozen=True, slots=True)
class AccessRules:
    """The access rules in the engine's form."""

    allow_uid: tuple[int, ...]
    allow_gid: tuple[int, ...]
    allow_prefix: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    max_connections_per_uid: int
    max_descriptors_per_uid: int

    @classmethod
    def from_config(cls, config: "Config") -> Self:
        """Return the rules of the settings."""
        return cls(
            allow_uid=config.allow_uid,
            allow_gid=config.allow_gid,
            allow_prefix=tuple(
                (prefix, _ids_of_kind(allowed, "uid"), _ids_of_kind(allowed, "gid"))
                for prefix, allowed in config.allow_prefix.items()
            ),
            max_connections_per_uid=config.max_connections_per_uid,
            max_descriptors_per_uid=config.max_descriptors_per_uid,
        )


def _ids_of_kind(allowed: Iterable[str], kind: str) -> tuple[int, ...]:
    return tuple(int(each.removeprefix(f"{kind}:")) for each in allowed if each.startswith(f"{kind}:"))
