"""Lists and describes the paths of the fsspec file system: objects, directories with objects, made directories."""

from collections.abc import Iterator
from typing import Any

from objmapper_client._files.fsspec_directories import MadeDirectories
from objmapper_client._files.fsspec_info import Info, directory_info, file_info, not_found
from objmapper_client.client import Client
from objmapper_client.errors import InvalidRequest, LocalProtocolError, ObjectNotFound, PermissionDenied


class Listing:
    """The operations of the file system that list and describe paths (a mixin)."""

    client: Client
    _made_directories: MadeDirectories
    # Attributes of fsspec and of the file system that this uses.
    root_marker: str
    _strip_protocol: Any

    def info(self, path: str, **_: Any) -> Info:
        """Returns name, size, type; of an object also mtime (seconds since 1970) and etag. Raises FileNotFoundError."""
        path = self._strip_protocol(path)
        if path != self.root_marker:
            try:
                found = self.client.stat(path)
                return file_info(found.uri, found.size, found.mtime, found.etag)
            except (ObjectNotFound, PermissionDenied, InvalidRequest, LocalProtocolError) as error:
                # As in lists: empty directories, links, unreadable files and invalid URIs do not exist.
                if path not in self._made_directories and not self._has_objects(path):
                    raise not_found(path) from error
        return directory_info(path)

    def exists(self, path: str, **_: Any) -> bool:
        """Whether the path is an object or has objects below it."""
        try:
            self.info(path)
        except (FileNotFoundError, InvalidRequest, LocalProtocolError):
            return False
        return True

    def isdir(self, path: str) -> bool:
        """Whether the path is a directory."""
        return bool(self._type_of(path) == "directory")

    def isfile(self, path: str) -> bool:
        """Whether the path is an object."""
        return bool(self._type_of(path) == "file")

    def _type_of(self, path: str) -> str | None:
        try:
            return str(self.info(path)["type"])
        except (FileNotFoundError, InvalidRequest, LocalProtocolError, PermissionDenied):
            return None

    def _has_objects(self, path: str) -> bool:
        return next(self._list_below(path, page_size=1), None) is not None

    def _list_below(self, path: str, page_size: int = 1000) -> Iterator[Info]:
        try:
            for entry in self.client.list(path.rstrip("/") + "/", page_size=page_size):
                yield file_info(entry.uri, entry.size, entry.mtime)
        except (InvalidRequest, LocalProtocolError):
            # No URI has this prefix.
            return

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """Lists a directory's entries in order. This lists all objects below it on the server.

        Raises FileNotFoundError.
        """
        path = self._strip_protocol(path)
        found: dict[str, Info] = {}
        start = len(path.rstrip("/")) + 1
        for each in self._list_below(path):
            child, slash, _rest = each["name"][start:].partition("/")
            name = each["name"][:start] + child
            found.setdefault(name, directory_info(name) if slash else each)
        for name in self._made_directories.below(path):
            child = name[:start] + name[start:].partition("/")[0]
            found.setdefault(child, directory_info(child))
        if path in self._made_directories:
            return [found[name] for name in sorted(found)] if detail else sorted(found)
        if not found and path != self.root_marker:
            each = self.info(path)
            found[path] = each
        return [found[name] for name in sorted(found)] if detail else sorted(found)

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **_: Any
    ) -> Any:
        """Lists all objects below a path: names in order, or with `detail` the `info` of each."""
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        path = self._strip_protocol(path)
        start = len(path.rstrip("/")) + 1
        found: dict[str, Info] = {}
        for each in self._list_below(path):
            parts = each["name"][start:].split("/")
            if withdirs:
                found.setdefault(path, directory_info(path))
                for depth in range(1, min(len(parts), maxdepth + 1 if maxdepth else len(parts))):
                    name = each["name"][:start] + "/".join(parts[:depth])
                    found.setdefault(name, directory_info(name))
            if maxdepth is None or len(parts) <= maxdepth:
                found[each["name"]] = each
        if withdirs:
            made = [
                name
                for name in self._made_directories.below(path)
                if not maxdepth or name[start:].count("/") < maxdepth
            ]
            for name in (*made, *([path] if made or path in self._made_directories else [])):
                found.setdefault(name, directory_info(name))
        if not found and self.isfile(path):
            found[path] = self.info(path)
        return {name: found[name] for name in sorted(found)} if detail else sorted(found)
