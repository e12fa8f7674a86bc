"""The settings of a server: one frozen value, validated once. An error is one line with the setting and the remedy."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Self, Unpack

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
from objmapper_server.concurrency import (
    MODELS_BY_TRANSPORT,
    TRANSPORTS,
    Concurrency,
    Transport,
    parse_models,
    resolve_model,
)
from objmapper_server.errors import ConfigError, did_you_mean, warn_renamed
from objmapper_server.settings.access_rules import parse_groups, parse_prefixes, parse_users
from objmapper_server.settings.config_arguments import ConfigArguments, StrPath
from objmapper_server.settings.listen_address import ListenAddress, parse_host_names, parse_networks
from objmapper_server.settings.origin import Origin, Origins, parse_origins
from objmapper_server.settings.setting_info import Prefixes, Seconds, SecondsOrZero, SettingInfo, count, size
from objmapper_server.settings.sources import DEFAULT_ADMIN, ENVIRONMENT_PREFIX, absolute_path, load_layers

DEFAULT_ADMIN_PORT: Final = 9997


def _default_socket() -> Path:
    # $OBJMAPPER_SERVER is for clients, and may name another server.
    environment = {name: value for name, value in os.environ.items() if name != "OBJMAPPER_SERVER"}
    default = address.default_address(environment)
    assert isinstance(default, address.UnixAddress)
    return Path(default.path)


def _none_if_off(value: object) -> object:
    return None if isinstance(value, str) and value.strip().lower() in {"none", "off"} else value


class Config(BaseSettings):
    """The settings of one server.

    ``Config(root=…, unix=…)`` uses only its arguments. `Config.load` merges sources: flags win, then the environment,
    then the file. Both raise `ConfigError`.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENVIRONMENT_PREFIX,
        env_ignore_empty=True,
        validate_default=False,
    )

    # Flag, variable, key in the file and row in the reference follow from a field: "Add a setting" in CONTRIBUTING.md.
    root: Annotated[Path, SettingInfo("The directory whose files are served.", "ROOT")] = Field(
        description="the directory whose files are served"
    )
    unix: Annotated[
        Path | None, SettingInfo("Serve on this Unix socket; the default without --tcp and --udp.", "PATH")
    ] = Field(None, description="the path of a Unix socket, or none")
    unix_mode: Annotated[int, SettingInfo("Permissions of the Unix socket.", "OCTAL", default="0600")] = Field(
        0o600, ge=0, le=0o777, description="octal permissions such as 0660"
    )
    tcp: Annotated[str | None, SettingInfo("Serve on TCP; port 0 takes a free one.", "HOST:PORT")] = Field(
        None, description="HOST:PORT (IPv6 in brackets, port 0 for a free one), or none"
    )
    udp: Annotated[str | None, SettingInfo("Serve on UDP; port 0 takes a free one.", "HOST:PORT")] = Field(
        None, description="HOST:PORT (IPv6 in brackets, port 0 for a free one), or none"
    )
    udp_trusted: Annotated[
        tuple[str, ...],
        NoDecode,
        SettingInfo("Answer plain requests from this network, too, such as 10.0.0.0/8.", "NETWORK", repeatable=True),
    ] = Field((), description="networks such as 10.0.0.0/8, or none")
    udp_rate_limit: Annotated[
        ByteSize,
        size(unit="bytes a second", example="100MB", zero="0 for none"),
        SettingInfo("Bytes a second over UDP to one address, such as 50MB; 0: no limit.", "BYTES"),
    ] = ByteSize(128 << 20)
    admin: Annotated[
        str | None, SettingInfo("Address of the admin endpoint.", "HOST:PORT|unix:PATH", default=DEFAULT_ADMIN)
    ] = Field(None, description="HOST:PORT or unix:PATH, or none")
    admin_host: Annotated[
        tuple[str, ...],
        NoDecode,
        SettingInfo(
            "Accept this host name at the admin endpoint, too; * accepts any.",
            "NAME",
            repeatable=True,
            reloadable=True,
        ),
    ] = Field((), description="host names, or * for any")
    admin_token: Annotated[
        str | None,
        SettingInfo("Token that the admin endpoint requires for changes.", "TOKEN", reloadable=True, has_flag=False),
    ] = Field(None, min_length=16, repr=False, description="16 characters at least, or none")
    concurrency_model: Annotated[
        Concurrency | Mapping[Transport, Concurrency],
        SettingInfo(
            "auto, by-transport, thread-per-connection, …",
            "[TRANSPORT=]MODEL",
            default="",
            repeatable=True,
            values=MODELS_BY_TRANSPORT,
            reloadable=True,
        ),
    ] = Field(
        Concurrency.AUTO,
        description=f"one of {', '.join(Concurrency)}; or TRANSPORT=MODEL with a transport of {', '.join(TRANSPORTS)}",
    )
    pool_size: Annotated[
        int,
        count(0, 10_000, "; 0 means twice the cores"),
        SettingInfo("Threads of a pool.", "N", default="0, twice the cores"),
    ] = 0
    max_queue_depth: Annotated[int, count(1), SettingInfo("Requests that may wait; the server rejects more.", "N")] = (
        100
    )
    max_threads: Annotated[int, count(1, 100_000), SettingInfo("Threads of thread-per-connection.", "N")] = 1000
    max_connections: Annotated[
        int, count(1), SettingInfo("Maximum number of open connections.", "N", reloadable=True)
    ] = 10_000
    allow_uid: Annotated[
        tuple[int, ...],
        NoDecode,
        SettingInfo("Let only these users connect to the Unix socket.", "USER", repeatable=True, reloadable=True),
    ] = Field((), description="users, by number or name")
    allow_gid: Annotated[
        tuple[int, ...],
        NoDecode,
        SettingInfo(
            "Let members of these groups connect to the Unix socket.", "GROUP", repeatable=True, reloadable=True
        ),
    ] = Field((), description="groups, by number or name")
    allow_prefix: Annotated[
        Prefixes,
        NoDecode,
        SettingInfo(
            "Users and groups that may use the objects below a URI.",
            "PREFIX=uid:USER,gid:GROUP",
            repeatable=True,
            reloadable=True,
        ),
    ] = Field(default_factory=dict, description="PREFIX=uid:…,gid:…, or a table of prefix and list")
    max_connections_per_uid: Annotated[
        int,
        count(0, also="; 0 means no cap"),
        SettingInfo("Maximum number of open connections of one user.", "N", default="0, no cap", reloadable=True),
    ] = 0
    max_descriptors_per_uid: Annotated[
        int,
        count(0, also="; 0 means no cap"),
        SettingInfo(
            "Maximum number of descriptors of one user, unread or open.", "N", default="0, no cap", reloadable=True
        ),
    ] = 0
    optimize_for: Annotated[
        Literal["latency", "throughput"], SettingInfo("Spin before sleeping, or batch.", "latency|throughput")
    ] = Field("throughput", description="latency or throughput")
    async_storage: Annotated[bool, SettingInfo("Wait for the disk in storage threads.")] = Field(
        True, description="true or false"
    )
    storage_pool_size: Annotated[int, count(1, 10_000), SettingInfo("Storage threads.", "N")] = 4
    cache_size: Annotated[
        ByteSize, size(zero="0 for none"), SettingInfo("Memory for small objects, such as 512MB; 0: none.", "BYTES")
    ] = ByteSize(1 << 30)
    cache_max_age: Annotated[
        Seconds, SettingInfo("Read an object in memory again after this time.", "SECONDS", reloadable=True)
    ] = 60.0
    max_output_buffer: Annotated[
        ByteSize,
        size(128 << 10, "128KiB"),
        SettingInfo("Memory for the unread responses of one connection.", "BYTES"),
    ] = ByteSize(4 << 20)
    max_output_memory: Annotated[
        ByteSize, size(1 << 20, "1MiB"), SettingInfo("Memory for the unread responses of all connections.", "BYTES")
    ] = ByteSize(256 << 20)
    follow_symlinks: Annotated[bool, SettingInfo("Follow links that stay inside ROOT.")] = Field(
        False, description="true or false"
    )
    writable: Annotated[bool, SettingInfo("Let clients put and delete objects.")] = Field(
        False, description="true or false"
    )
    max_object_size: Annotated[
        ByteSize,
        size(zero="0 for any"),
        SettingInfo("Maximum size of an object that a client stores.", "BYTES", default="any size"),
    ] = ByteSize(0)
    min_upload_rate: Annotated[
        ByteSize,
        size(zero="0 for any", unit="bytes a second"),
        SettingInfo("Minimum rate of an upload.", "BYTES"),
    ] = ByteSize(1 << 10)
    upload_timeout: Annotated[Seconds, SettingInfo("Maximum time of an upload.", "SECONDS")] = 3600.0
    max_uploads_per_uid: Annotated[
        int,
        count(0, also="; 0 means no cap"),
        SettingInfo("Maximum number of uploads of one user at a time.", "N", default="no cap"),
    ] = 0
    max_reserved_per_uid: Annotated[
        ByteSize,
        size(zero="0 for none ahead"),
        SettingInfo("Disk space reserved for the announced uploads of one user.", "BYTES"),
    ] = ByteSize(1 << 30)
    idle_timeout: Annotated[
        Seconds, SettingInfo("Close a connection that is idle for this time.", "SECONDS", reloadable=True)
    ] = 60.0
    header_timeout: Annotated[
        Seconds, SettingInfo("Maximum time for a request to arrive.", "SECONDS", reloadable=True)
    ] = 10.0
    request_timeout: Annotated[
        Seconds, SettingInfo("Maximum time without progress of a response.", "SECONDS", reloadable=True)
    ] = 30.0
    shutdown_grace: Annotated[SecondsOrZero, SettingInfo("Shutdown grace period.", "SECONDS", reloadable=True)] = 10.0
    log_format: Annotated[Literal["text", "json"], SettingInfo("Format of log messages.", "text|json")] = Field(
        "text", description="text or json"
    )
    origins: Annotated[
        Origins,
        NoDecode,
        SettingInfo(
            "Serve the objects of a store below a prefix.", "/PREFIX=URL", default="", repeatable=True, flag="origin"
        ),
    ] = Field(default_factory=dict, description="/PREFIX=URL, or a table of prefix and URL")
    disk_cache: Annotated[
        Path | None,
        SettingInfo("Keep objects of origins here, not in $CACHE_DIRECTORY or ~/.cache/objmapper.", "DIR"),
    ] = Field(None, description="a directory of the server's own")
    disk_cache_size: Annotated[
        ByteSize,
        size(64 << 20, "64MiB", example="200GiB"),
        SettingInfo("Maximum size of the disk cache, such as 200GiB.", "BYTES"),
    ] = ByteSize(10 << 30)
    access_log: Annotated[
        Path | None, SettingInfo("Append a sample of the requests to FILE, a line of JSON each.", "FILE")
    ] = Field(None, description="the path of a file, or none")
    access_log_sample: Annotated[int, count(1, 1_000_000_000), SettingInfo("Record one request of N.", "N")] = 100

    _sources: Mapping[str, str] = PrivateAttr()
    #: The arguments of `load`; None if a program called the constructor.
    _loaded_from: tuple[StrPath | None, Mapping[str, Any]] | None = PrivateAttr(None)

    def __init__(self, **arguments: Unpack[ConfigArguments]) -> None:
        values: dict[str, Any] = dict(arguments)
        if all(values.get(name) is None for name in TRANSPORTS):
            values["unix"] = _default_socket()
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _to_config_error(error, type(self)) from None
        self._sources = MappingProxyType(
            {name: "the program" if name in arguments else "default" for name in type(self).model_fields}
        )
        try:
            _ = self.models
        except ValueError as error:
            raise ConfigError("concurrency_model", str(error)) from None

    @classmethod
    def load(cls, file: StrPath | None = None, *, environment: bool = True, **flags: object) -> Self:
        """Read flags, environment (unless `environment` is False) and `file`. A flag of None counts as not given."""
        values, origins = load_layers(cls, file, flags, environment=environment)
        try:
            config = cls(**values)
        except ConfigError as error:
            origin = origins.get(error.field, "")
            raise ConfigError(error.field, error.problem, origin) from None
        config._sources = MappingProxyType({**config._sources, **origins})
        config._loaded_from = file, MappingProxyType(flags)
        return config

    def reloaded(self) -> Self:
        """Call `load` again with the same file and flags, and return the result.

        Raises `ConfigError` as `load`, and ValueError if `load` did not make these settings.
        """
        if self._loaded_from is None:
            raise ValueError("a program set these settings, so there is nothing to reload; use Config.load")
        file, flags = self._loaded_from
        return self.load(file, **flags)

    def with_settings_from(self, other: Self, names: Iterable[str]) -> Self:
        """Return these settings with those in `names` replaced by the values and origins of `other`."""
        names = tuple(names)
        copy = self.model_copy(update={name: getattr(other, name) for name in names})
        copy._sources = MappingProxyType({**self._sources, **{name: other.sources[name] for name in names}})
        return copy

    def replace(self, origin: str, **values: object) -> Self:
        """Return these settings with other values, which must be valid, and their `origin`."""
        copy = self.model_copy(update=values)
        copy._sources = MappingProxyType({**self._sources, **dict.fromkeys(values, origin)})
        return copy

    def read_again(self) -> Self:
        """Return `reloaded()`. Deprecated: use that name."""
        warn_renamed("Config.read_again", "Config.reloaded")
        return self.reloaded()

    def with_those_of(self, other: Self, names: Iterable[str]) -> Self:
        """Return `with_settings_from(other, names)`. Deprecated: use that name."""
        warn_renamed("Config.with_those_of", "Config.with_settings_from")
        return self.with_settings_from(other, names)

    def replaced(self, origin: str, **values: object) -> Self:
        """Return `replace(origin, **values)`. Deprecated: use that name."""
        warn_renamed("Config.replaced", "Config.replace")
        return self.replace(origin, **values)

    @property
    def sources(self) -> Mapping[str, str]:
        """The source of each value: ``default``, ``the program``, a flag, a variable or a file."""
        return self._sources

    @property
    def transports(self) -> tuple[Transport, ...]:
        """The transports that have an address, and are served."""
        return tuple(name for name in TRANSPORTS if getattr(self, name) is not None)

    @property
    def models(self) -> dict[Transport, Concurrency]:
        """The concrete model of each transport that is served."""
        return {transport: self.model_of(transport) for transport in self.transports}

    def model_of(self, transport: Transport) -> Concurrency:
        """Return the concrete model that a transport gets, served or not."""
        model_setting = self.concurrency_model
        return resolve_model(
            model_setting if isinstance(model_setting, Concurrency) else model_setting.get(transport, Concurrency.AUTO),
            transport,
        )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic's
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Do not read the environment: only `load` does."""
        return (init_settings,)

    @field_validator("origins", mode="before")
    @classmethod
    def _parse_origins(cls, value: object) -> dict[str, Origin]:
        return parse_origins(value)

    @field_validator("root", "unix", "access_log", "disk_cache", mode="before")
    @classmethod
    def _path(cls, value: object, info: ValidationInfo) -> object:
        if info.field_name == "unix":
            value = _none_if_off(value)
        if not isinstance(value, str | os.PathLike):
            return value
        text = os.fspath(value)
        if info.field_name == "unix":
            text = text.removeprefix("unix:")
        if not text or "\0" in text:
            raise ValueError("expected a path without NUL, and not empty")
        return value if info.field_name == "access_log" else absolute_path(text)

    @field_validator("tcp", "udp", mode="before")
    @classmethod
    def _network(cls, value: object, info: ValidationInfo) -> object:
        value = _none_if_off(value)
        if not isinstance(value, str):
            return value
        default = address.DEFAULT_TCP_PORT if info.field_name == "tcp" else address.DEFAULT_UDP_PORT
        return str(ListenAddress.parse(value.removeprefix(f"{info.field_name}://"), default))

    @field_validator("udp_trusted", mode="before")
    @classmethod
    def _networks(cls, value: object) -> object:
        if _none_if_off(value) is None:
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
        value = _none_if_off(value)
        if not isinstance(value, str):
            return value
        if value.startswith(("/", "unix:")):
            path = value.removeprefix("unix:")
            if not path:
                raise ValueError("expected a path after unix:")
            return f"unix:{absolute_path(path)}"
        return str(ListenAddress.parse(value.removeprefix("http://").rstrip("/"), DEFAULT_ADMIN_PORT))

    @field_validator("admin_host", mode="before")
    @classmethod
    def _admin_host(cls, value: object) -> object:
        if _none_if_off(value) is None:
            return ()
        return parse_host_names([value] if isinstance(value, str) else value) if isinstance(value, Iterable) else value

    @field_validator("admin_token", mode="after")
    @classmethod
    def _admin_token(cls, value: str | None) -> str | None:
        # An HTTP header loses white space at its ends, and cannot carry control characters.
        if value is not None and (value != value.strip() or not value.isprintable()):
            raise ValueError("expected printable text without white space at its ends")
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
        return parse_models(pairs)

    @field_validator("allow_uid", mode="before")
    @classmethod
    def _allow_uid(cls, value: object) -> tuple[int, ...]:
        return parse_users(value)

    @field_validator("allow_gid", mode="before")
    @classmethod
    def _allow_gid(cls, value: object) -> tuple[int, ...]:
        return parse_groups(value)

    @field_validator("allow_prefix", mode="before")
    @classmethod
    def _allow_prefix(cls, value: object) -> dict[str, tuple[str, ...]]:
        return parse_prefixes(value)

    @field_validator("optimize_for", mode="before")
    @classmethod
    def _optimize_for(cls, value: object) -> object:
        known = ("latency", "throughput")
        if isinstance(value, str) and value not in known:
            raise ValueError(f"expected {' or '.join(known)} (got {value!r}){did_you_mean(value, known)}")
        return value


def _to_config_error(error: ValidationError, config: type[Config]) -> ConfigError:
    """Return the first error as one line with a remedy; pydantic's own takes several lines."""
    first = error.errors(include_url=False)[0]
    field = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return ConfigError(field, f"no such setting{did_you_mean(field, config.model_fields)}")
    allowed = config.model_fields[field].description
    if first["type"] == "missing":
        return ConfigError(field, f"required: {allowed}")
    if first["type"] == "value_error":
        return ConfigError(field, str(first["ctx"]["error"]))
    # Do not show a secret: a token that is too short may be most of the right one.
    got = repr(first["input"]) if config.model_fields[field].repr else "another value"
    return ConfigError(field, f"expected {allowed} (got {got})")
