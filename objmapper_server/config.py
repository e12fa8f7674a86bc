"""Every setting of a server, as one frozen value that is checked once and says in one line what is wrong with it."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Self, TypedDict, Unpack

from pydantic import (
    ByteSize,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from objmapper_client import address
from objmapper_server.concurrency import TRANSPORTS, Concurrency, Transport, choose
from objmapper_server.errors import ConfigError, did_you_mean
from objmapper_server.settings.access_rules import groups, prefixes, users
from objmapper_server.settings.listen_address import ListeningPoint, parse_host_names, parse_networks
from objmapper_server.settings.sources import ENVIRONMENT_PREFIX, absolute_path, layered

DEFAULT_ADMIN_PORT: Final = 9997
A_YEAR: Final = 366 * 86400.0

StrPath = str | os.PathLike[str]
People = int | str | Iterable[int | str]
Models = Concurrency | str | Iterable[str] | Mapping[str, Concurrency | str]


class Given(TypedDict, total=False):
    """What `Config` takes: more than it holds, because it also reads text."""

    root: StrPath
    unix: StrPath | None
    unix_mode: int | str
    tcp: str | None
    udp: str | None
    udp_trusted: str | Iterable[str]
    udp_rate_limit: int | str
    admin: str | None
    admin_host: str | Iterable[str]
    admin_token: str | None
    concurrency_model: Models
    pool_size: int
    max_queue_depth: int
    max_threads: int
    max_connections: int
    allow_uid: People
    allow_gid: People
    allow_prefix: str | Iterable[str] | Mapping[str, People]
    max_connections_per_uid: int
    max_descriptors_per_uid: int
    optimize_for: Literal["latency", "throughput"]
    async_storage: bool
    storage_pool_size: int
    cache_size: int | str
    cache_max_age: float
    max_output_buffer: int | str
    max_output_memory: int | str
    follow_symlinks: bool
    writable: bool
    max_object_size: int | str
    min_upload_rate: int | str
    upload_timeout: float
    max_uploads_per_uid: int
    max_reserved_per_uid: int | str
    idle_timeout: float
    header_timeout: float
    request_timeout: float
    shutdown_grace: float
    log_format: Literal["text", "json"]
    access_log: StrPath | None
    access_log_sample: int


def _default_socket() -> Path:
    # $OBJMAPPER_SERVER says where clients go, which may be another server.
    own = {name: value for name, value in os.environ.items() if name != "OBJMAPPER_SERVER"}
    named = address.default_address(own)
    assert isinstance(named, address.UnixAddress)
    return Path(named.path)


def _switched_off(value: object) -> object:
    return None if isinstance(value, str) and value.strip().lower() in {"none", "off"} else value


def _count(least: int, most: int = 1_000_000, also: str = "") -> Any:
    return Field(ge=least, le=most, description=f"a whole number from {least} to {most}{also}")


def _bytes(least: int = 0, shown: str = "", *, zero: str = "", unit: str = "bytes") -> Any:
    description = f"{unit}, at least {shown}" if shown else unit
    description += ": a number, or with a unit as in 512MB or 1GiB" + (f"; {zero}" if zero else "")
    return Field(ge=least, le=1 << 62, description=description)


Count = Annotated[int, _count(1)]
Seconds = Annotated[float, Field(gt=0, le=A_YEAR, allow_inf_nan=False, description="seconds, more than 0")]
Grace = Annotated[float, Field(ge=0, le=A_YEAR, allow_inf_nan=False, description="seconds, 0 or more")]


class Config(BaseSettings):
    """The settings of one server.

    ``Config(root=…, unix=…)`` takes what it is given and reads no settings from anywhere else. `Config.load` is the
    form with layers: flags win, then the environment, then the file. Both raise `ConfigError`.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENVIRONMENT_PREFIX,
        env_ignore_empty=True,
        validate_default=False,
    )

    root: Path = Field(description="the directory whose files are served")
    unix: Path | None = Field(None, description="the path of a Unix socket, or none")
    unix_mode: int = Field(0o600, ge=0, le=0o777, description="who may connect, as octal permissions such as 0660")
    tcp: str | None = Field(None, description="HOST:PORT (IPv6 in brackets, port 0 for a free one), or none")
    udp: str | None = Field(None, description="HOST:PORT (IPv6 in brackets, port 0 for a free one), or none")
    udp_trusted: Annotated[tuple[str, ...], NoDecode] = Field((), description="networks such as 10.0.0.0/8, or none")
    udp_rate_limit: Annotated[
        ByteSize,
        Field(ge=0, le=1 << 62, description="bytes a second: a number, or with a unit as in 100MB; 0 for none"),
    ] = ByteSize(128 << 20)
    admin: str | None = Field(None, description="HOST:PORT or unix:PATH, or none")
    admin_host: Annotated[tuple[str, ...], NoDecode] = Field((), description="host names, or * for any")
    admin_token: str | None = Field(None, min_length=16, repr=False, description="16 characters at least, or none")
    concurrency_model: Concurrency | Mapping[Transport, Concurrency] = Field(
        Concurrency.AUTO,
        description=f"one of {', '.join(Concurrency)}; or TRANSPORT=MODEL with a transport of {', '.join(TRANSPORTS)}",
    )
    pool_size: Annotated[int, _count(0, 10_000, "; 0 means twice the cores")] = 0
    max_queue_depth: Count = 100
    max_threads: Annotated[int, _count(1, 100_000)] = 1000
    max_connections: Count = 10_000
    allow_uid: Annotated[tuple[int, ...], NoDecode] = Field((), description="users, by number or name")
    allow_gid: Annotated[tuple[int, ...], NoDecode] = Field((), description="groups, by number or name")
    allow_prefix: Annotated[Mapping[str, tuple[str, ...]], NoDecode] = Field(
        default_factory=dict, description="PREFIX=uid:…,gid:…, or a table of prefix and list"
    )
    max_connections_per_uid: Annotated[int, _count(0, also="; 0 means no cap")] = 0
    max_descriptors_per_uid: Annotated[int, _count(0, also="; 0 means no cap")] = 0
    optimize_for: Literal["latency", "throughput"] = Field("throughput", description="latency or throughput")
    async_storage: bool = Field(True, description="true or false")
    storage_pool_size: Annotated[int, _count(1, 10_000)] = 4
    cache_size: Annotated[ByteSize, _bytes(zero="0 for none")] = ByteSize(1 << 30)
    cache_max_age: Seconds = 60.0
    max_output_buffer: Annotated[ByteSize, _bytes(128 << 10, "128KiB")] = ByteSize(4 << 20)
    max_output_memory: Annotated[ByteSize, _bytes(1 << 20, "1MiB")] = ByteSize(256 << 20)
    follow_symlinks: bool = Field(False, description="true or false")
    writable: bool = Field(False, description="true or false")
    max_object_size: Annotated[ByteSize, _bytes(zero="0 for any")] = ByteSize(0)
    min_upload_rate: Annotated[ByteSize, _bytes(zero="0 for any", unit="bytes a second")] = ByteSize(1 << 10)
    upload_timeout: Seconds = 3600.0
    max_uploads_per_uid: Annotated[int, _count(0, also="; 0 means no cap")] = 0
    max_reserved_per_uid: Annotated[ByteSize, _bytes(zero="0 for none ahead")] = ByteSize(1 << 30)
    idle_timeout: Seconds = 60.0
    header_timeout: Seconds = 10.0
    request_timeout: Seconds = 30.0
    shutdown_grace: Grace = 10.0
    log_format: Literal["text", "json"] = Field("text", description="text or json")
    access_log: Path | None = Field(None, description="the file that a sample of the requests is written to, or none")
    access_log_sample: Annotated[int, _count(1, 1_000_000_000)] = 100

    _origins: Mapping[str, str] = PrivateAttr()
    #: What `load` was given; None where a program made the value itself.
    _sources: tuple[StrPath | None, Mapping[str, Any]] | None = PrivateAttr(None)

    def __init__(self, **given: Unpack[Given]) -> None:
        values: dict[str, Any] = dict(given)
        if all(values.get(name) is None for name in TRANSPORTS):
            values["unix"] = _default_socket()
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _explained(error) from None
        self._origins = MappingProxyType(
            {name: "the program" if name in given else "default" for name in type(self).model_fields}
        )
        try:
            _ = self.models
        except ValueError as error:
            raise ConfigError("concurrency_model", str(error)) from None

    @classmethod
    def load(cls, file: StrPath | None = None, *, environment: bool = True, **flags: object) -> Self:
        """Read flags, environment (unless told not to) and `file`; a flag of None was not given."""
        values, origins = layered(cls, file, flags, environment=environment)
        try:
            config = cls(**values)
        except ConfigError as error:
            origin = origins.get(error.field, "")
            raise ConfigError(error.field, error.problem, origin) from None
        config._origins = MappingProxyType({**config._origins, **origins})
        config._sources = file, MappingProxyType(flags)
        return config

    def read_again(self) -> Self:
        """Return what `load` comes to now, from the same file and flags.

        Raises `ConfigError` as it does, and ValueError where it was never called.
        """
        if self._sources is None:
            raise ValueError("these settings are the program's own: there is nothing to read again")
        file, flags = self._sources
        return self.load(file, **flags)

    def with_those_of(self, other: Self, names: Iterable[str]) -> Self:
        """Return these settings, but those named from `other`, with their origins."""
        names = tuple(names)
        copy = self.model_copy(update={name: getattr(other, name) for name in names})
        copy._origins = MappingProxyType({**self._origins, **{name: other.origins[name] for name in names}})
        return copy

    def replaced(self, origin: str, **values: object) -> Self:
        """Return these settings with other values, which must be valid ones, and where those came from."""
        copy = self.model_copy(update=values)
        copy._origins = MappingProxyType({**self._origins, **dict.fromkeys(values, origin)})
        return copy

    @property
    def origins(self) -> Mapping[str, str]:
        """Where each value came from: ``default``, ``the program``, a flag, a variable or a file."""
        return self._origins

    @property
    def transports(self) -> tuple[Transport, ...]:
        """What is served."""
        return tuple(name for name in TRANSPORTS if getattr(self, name) is not None)

    @property
    def models(self) -> dict[Transport, Concurrency]:
        """The concrete model of each transport that is served."""
        return {transport: self.model_of(transport) for transport in self.transports}

    def model_of(self, transport: Transport) -> Concurrency:
        """Return the concrete model that a transport gets, served or not."""
        asked = self.concurrency_model
        return choose(asked if isinstance(asked, Concurrency) else asked.get(transport, Concurrency.AUTO), transport)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave the environment alone: only `load` reads it."""
        return (init_settings,)

    @field_validator("root", "unix", "access_log", mode="before")
    @classmethod
    def _path(cls, value: object, info: ValidationInfo) -> object:
        if info.field_name == "unix":
            value = _switched_off(value)
        if not isinstance(value, str | os.PathLike):
            return value
        text = os.fspath(value)
        if info.field_name == "unix":
            text = text.removeprefix("unix:")
        if not text or "\0" in text:
            raise ValueError("a path is needed")
        return value if info.field_name == "access_log" else absolute_path(text)

    @field_validator("tcp", "udp", mode="before")
    @classmethod
    def _network(cls, value: object, info: ValidationInfo) -> object:
        value = _switched_off(value)
        if not isinstance(value, str):
            return value
        default = address.DEFAULT_TCP_PORT if info.field_name == "tcp" else address.DEFAULT_UDP_PORT
        return str(ListeningPoint.parse(value.removeprefix(f"{info.field_name}://"), default))

    @field_validator("udp_trusted", mode="before")
    @classmethod
    def _networks(cls, value: object) -> object:
        if _switched_off(value) is None:
            return ()
        if not isinstance(value, Iterable):
            return value
        return parse_networks([value] if isinstance(value, str) else value)

    @field_validator("unix_mode", mode="before")
    @classmethod
    def _octal(cls, value: object) -> object:
        return int(value, 8) if isinstance(value, str) and re.fullmatch(r"(0o)?[0-7]{1,4}", value) else value

    @field_validator("admin", mode="before")
    @classmethod
    def _admin(cls, value: object) -> object:
        value = _switched_off(value)
        if not isinstance(value, str):
            return value
        if value.startswith(("/", "unix:")):
            path = value.removeprefix("unix:")
            if not path:
                raise ValueError("a path is needed after unix:")
            return f"unix:{absolute_path(path)}"
        return str(ListeningPoint.parse(value.removeprefix("http://").rstrip("/"), DEFAULT_ADMIN_PORT))

    @field_validator("admin_host", mode="before")
    @classmethod
    def _admin_host(cls, value: object) -> object:
        if _switched_off(value) is None:
            return ()
        return parse_host_names([value] if isinstance(value, str) else value) if isinstance(value, Iterable) else value

    @field_validator("admin_token", mode="after")
    @classmethod
    def _admin_token(cls, value: str | None) -> str | None:
        # An HTTP header loses white space at its ends, and cannot carry control characters.
        if value is not None and (value != value.strip() or not value.isprintable()):
            raise ValueError("a token is printable text without white space at its ends")
        return value

    @field_validator("concurrency_model", mode="before")
    @classmethod
    def _concurrency_model(cls, value: object) -> object:
        if isinstance(value, Concurrency):
            return value
        if isinstance(value, Mapping):
            pairs = [(str(transport), str(model)) for transport, model in value.items()]
        elif isinstance(value, str | list | tuple):
            items = value.split(",") if isinstance(value, str) else [str(item) for item in value]
            pairs = [(before.strip(), after) for before, _, after in (item.rpartition("=") for item in items)]
        else:
            return value
        return _models(pairs)

    @field_validator("allow_uid", mode="before")
    @classmethod
    def _allow_uid(cls, value: object) -> tuple[int, ...]:
        return users(value)

    @field_validator("allow_gid", mode="before")
    @classmethod
    def _allow_gid(cls, value: object) -> tuple[int, ...]:
        return groups(value)

    @field_validator("allow_prefix", mode="before")
    @classmethod
    def _allow_prefix(cls, value: object) -> dict[str, tuple[str, ...]]:
        return prefixes(value)

    @field_validator("optimize_for", mode="before")
    @classmethod
    def _optimize_for(cls, value: object) -> object:
        known = ("latency", "throughput")
        if isinstance(value, str) and value not in known:
            raise ValueError(f"{value!r} is none of {', '.join(known)}{did_you_mean(value, known)}")
        return value


def _models(pairs: Iterable[tuple[str, str]]) -> Concurrency | dict[Transport, Concurrency]:
    """Return one model, or one for each transport; a pair without a transport speaks for all that have none."""
    for_all = Concurrency.AUTO
    chosen: dict[Transport, Concurrency] = {}
    for name, text in pairs:
        model = _model(text.strip())
        transport = next((known for known in TRANSPORTS if known == name), None)
        if transport is not None:
            chosen[transport] = model
        elif name:
            raise ValueError(f"{name!r} is no transport of {', '.join(TRANSPORTS)}{did_you_mean(name, TRANSPORTS)}")
        else:
            for_all = model
    return {transport: chosen.get(transport, for_all) for transport in TRANSPORTS} if chosen else for_all


def _model(text: str) -> Concurrency:
    try:
        return Concurrency(text)
    except ValueError:
        names = [str(model) for model in Concurrency]
        raise ValueError(f"{text!r} is none of {', '.join(names)}{did_you_mean(text, names)}") from None


def _explained(error: ValidationError) -> ConfigError:
    """Return the first thing that is wrong in our own words: pydantic's take several lines and name no remedy."""
    first = error.errors(include_url=False)[0]
    field = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return ConfigError(field, f"no such setting{did_you_mean(field, Config.model_fields)}")
    allowed = Config.model_fields[field].description
    if first["type"] == "missing":
        return ConfigError(field, f"is needed: {allowed}")
    if first["type"] == "value_error":
        return ConfigError(field, str(first["ctx"]["error"]))
    # A secret is what `Config` does not show either: a token that is too short may be most of the right one.
    got = repr(first["input"]) if Config.model_fields[field].repr else "the value given"
    return ConfigError(field, f"{got} is not allowed: it takes {allowed}")
