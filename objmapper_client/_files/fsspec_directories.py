"""The directories that a process makes in the fsspec file system. The server has none: it has objects only."""

#: Maximum number of remembered directories; beyond it the oldest are forgotten.
_MAX_MADE = 10_000


class MadeDirectories:
    """The directories that this process has made, with or without objects in them."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    def __contains__(self, path: str) -> bool:
        return path in self._names

    def add(self, *paths: str) -> None:
        """Adds directories."""
        for path in paths:
            self._names[path] = None
        while len(self._names) > _MAX_MADE:
            self._names.pop(next(iter(self._names)), None)

    def below(self, path: str) -> list[str]:
        """Returns the directories below a path."""
        start = path.rstrip("/") + "/"
        return [name for name in tuple(self._names) if name.startswith(start)]

    def has(self, path: str) -> bool:
        """Whether the path or a path below it is a made directory."""
        return path in self._names or bool(self.below(path))

    def forget(self, path: str) -> None:
        """Removes a directory and those below it."""
        for name in (path, *self.below(path)):
            self._names.pop(name, None)
