"""The arguments of `Config`, which also parses text. `make reference` writes this from its fields."""

import os
from collections.abc import Iterable, Mapping
from typing import Literal, TypedDict

from objmapper_server.concurrency import Concurrency

StrPath = str | os.PathLike[str]
IDs = int | str | Iterable[int | str]
Models = Concurrency | str | Iterable[str] | Mapping[str, Concurrency | str]
Prefixes = str | Iterable[str] | Mapping[str, IDs]
Origins = str | Iterable[str] | Mapping[str, str | Mapping[str, object]]


class ConfigArguments(TypedDict, total=False):
    """The arguments of `Config`."""

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
    allow_uid: IDs
    allow_gid: IDs
    allow_prefix: Prefixes
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
    origins: Origins
    disk_cache: StrPath | None
    disk_cache_size: int | str
    access_log: StrPath | None
    access_log_sample: int
