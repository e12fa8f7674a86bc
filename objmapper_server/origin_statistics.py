"""The figures of the origins and of the disk cache, as values."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from objmapper_server import _engine


@dataclass(frozen=True, slots=True)
class MountStatistics:
    """One origin; counts are since start."""

    prefix: str
    store: str  #: its URL, without credentials
    hits: int  #: requests answered from the disk cache
    stale_hits: int  #: of objects that the store could not confirm
    misses: int  #: objects that had to be fetched
    revalidations: int  #: questions to the store that it answered with "unchanged"
    fills: int  #: objects that were fetched whole
    fills_under_way: int
    origin_bytes: int  #: bytes that the store sent
    origin_errors: int  #: questions to the store that failed; an object that does not exist is none
    problem: str | None  #: why the last question failed; None if it did not


@dataclass(frozen=True, slots=True)
class OriginStatistics:
    """The disk cache, and the origins whose objects it keeps."""

    directory: str
    size: int  #: the bound on all bytes
    cached_bytes: int
    cached_files: int
    reserved_bytes: int  #: of downloads under way
    held_bytes: int  #: of files that left the cache and whose descriptors clients hold
    held_files: int
    evictions: int
    damaged: int  #: entries whose file was gone or changed
    mounts: tuple[MountStatistics, ...]

    @classmethod
    def from_figures(cls, figures: "_engine.Origins") -> Self:
        """Return the engine's figures as a value."""
        return cls(
            directory=figures["directory"],
            size=figures["size"],
            **figures["usage"],
            evictions=figures["evictions"],
            damaged=figures["damaged"],
            mounts=tuple(MountStatistics(**mount) for mount in figures["mounts"]),
        )
