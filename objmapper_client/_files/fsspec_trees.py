"""The operations of the fsspec file system on several paths and on directories: copy, move, delete, make."""

import errno
import os
from typing import Any

from objmapper_client._files.fsspec_info import already_exists, is_a_directory, is_pattern, not_found
from objmapper_client._files.fsspec_listing import Listing


def plan_copies(system: Any, path1: Any, path2: Any, recursive: bool, maxdepth: int | None) -> list[tuple[str, str]]:
    """Returns pairs of source and target for the arguments of `copy` and `mv`, by fsspec's rules.

    Raises OSError if data would be lost: a directory goes into itself, two objects have one target, or a target is
    itself a source.
    """
    if isinstance(path1, list) and isinstance(path2, list):
        sources, targets = system._strip_protocol(path1), system._strip_protocol(path2)
        if len(sources) != len(targets):
            raise ValueError(
                f"expected as many targets as sources (got {len(sources)} sources, {len(targets)} targets)"
            )
    else:
        is_one = isinstance(path1, str)
        matches = is_one and is_pattern(path1) and not system.exists(path1)
        sources = system.expand_path(path1, recursive=recursive, maxdepth=maxdepth)
        if is_one and (not recursive or maxdepth is not None):
            sources = [each for each in sources if not system.isdir(each)]
            if not sources:
                return []
        is_directory = isinstance(path2, str) and (path2.endswith("/") or system.isdir(path2))
        copies_into = is_one and (
            (matches and len(sources) == 1) or (not matches and is_directory and not path1.endswith("/"))
        )
        if is_one and isinstance(path2, str) and system._strip_protocol(path1) == system._strip_protocol(path2):
            # A copy onto itself, not into itself.
            copies_into = False
        path2 = system._strip_protocol(path2)
        targets = system._strip_protocol(system._other_paths(sources, path2, exists=copies_into, flatten=not is_one))
    pairs = list(zip(sources, targets, strict=True))
    source_set = {source for source, target in pairs if source != target}
    target_set: set[str] = set()
    for source, target in pairs:
        if target.startswith(source.rstrip("/") + "/"):
            raise OSError(errno.EINVAL, "a directory cannot be copied into itself", source)
        if target in target_set or (target in source_set and source != target):
            raise OSError(errno.EEXIST, "another source of this copy has this path, or is copied to it", target)
        target_set.add(target)
    return pairs


class TreeOperations(Listing):
    """The operations of the file system on several paths and on directories (a mixin)."""

    # Attributes of fsspec and of the file system that this uses.
    _other_paths: Any
    _parent: Any
    _open: Any
    _put: Any
    glob: Any
    rm_file: Any

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Copies an object; over a Unix socket without reading its bytes. For a directory, makes an empty one."""
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        if path1 == path2:
            self.info(path1)
        else:
            self._copy_object(path1, path2)

    def _copy_object(self, path1: str, path2: str) -> str | None:
        """Copies an object. Returns the copied version; None for a directory."""
        try:
            with self._open(path1) as file:
                self._put(path2, file, length=file.size)
                return str(file.etag)
        except IsADirectoryError:
            pass
        except FileNotFoundError:
            # An empty directory exists only in this process.
            if path1 not in self._made_directories:
                raise
        self.makedirs(path2, exist_ok=True)
        return None

    def expand_path(
        self, path: Any, recursive: bool = False, maxdepth: int | None = None, assume_literal: bool = False, **_: Any
    ) -> list[str]:
        """Expands patterns: see fsspec. An existing object's or directory's name is not treated as a pattern."""
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        paths = [path] if isinstance(path, str | os.PathLike) else path
        found: set[str] = set()
        for each in map(self._strip_protocol, paths):
            if not assume_literal and is_pattern(each) and not self.exists(each):
                matches = self.glob(each, maxdepth=maxdepth)
                found.update(matches)
                depth = None if maxdepth is None else maxdepth - 1
                if recursive and matches and depth != 0:
                    found.update(self.expand_path(matches, True, depth, assume_literal=True))
                continue
            if recursive:
                found.update(self.find(each, maxdepth=maxdepth, withdirs=True))
            if not recursive or (each not in found and self.exists(each)):
                found.add(each)
        if not found:
            raise not_found(str(path))
        return sorted(found)

    def copy(
        self,
        path1: Any,
        path2: Any,
        recursive: bool = False,
        maxdepth: int | None = None,
        on_error: str | None = None,
        **_: Any,
    ) -> None:
        """Copies objects: see fsspec. A copy onto itself changes nothing; one into itself raises OSError."""
        ignores_missing = on_error == "ignore" or (on_error is None and recursive)
        for source, target in plan_copies(self, path1, path2, recursive, maxdepth):
            try:
                self.cp_file(source, target)
            except FileNotFoundError:
                if not ignores_missing:
                    raise

    def mv(self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None, **_: Any) -> None:
        """Copies objects as `copy` does, then deletes the copied versions. A source that changed raises Conflict."""
        copied = []
        for source, target in plan_copies(self, path1, path2, recursive, maxdepth):
            if source == target:
                self.info(source)
            else:
                copied.append((source, self._copy_object(source, target)))
        if not copied and isinstance(path1, str) and not recursive and self.isdir(path1):
            raise is_a_directory(path1)
        for source, etag in copied:
            if etag is None:
                self._made_directories.forget(source)
            else:
                self.client.delete(source, if_match=etag)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Deletes objects; with `recursive` all below a path. Raises FileNotFoundError, IsADirectoryError."""
        names = self.expand_path(path)
        made: list[str] = []
        if recursive:
            made = [each for each in names if self._made_directories.has(each)] if maxdepth is None else []
            names = sorted({name for each in names for name in self.find(each, maxdepth=maxdepth)})
            if not names and not made:
                raise not_found(str(path))
        for name in names:
            self.rm_file(name)
        for name in made:
            self._made_directories.forget(name)

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Makes a directory. Other processes see it once there is an object in it.

        Raises FileExistsError, NotADirectoryError if a parent is a file, FileNotFoundError.
        """
        path = self._strip_protocol(path)
        if self.exists(path):
            raise already_exists(path)
        parents = []
        parent = self._parent(path)
        while parent != self.root_marker and (kind := self._type_of(parent)) != "directory":
            if kind == "file":
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            if not create_parents:
                raise not_found(parent)
            parents.append(parent)
            parent = self._parent(parent)
        self._made_directories.add(*reversed(parents), path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Makes a directory and its parents. With `exist_ok` it may exist."""
        if not (exist_ok and self.isdir(path)):
            self.mkdir(path)

    def rmdir(self, path: str) -> None:
        """Removes an empty directory. Raises OSError if it is not empty, FileNotFoundError."""
        path = self._strip_protocol(path)
        if self.info(path)["type"] != "directory":
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        if self._has_objects(path) or self._made_directories.below(path):
            raise OSError(errno.ENOTEMPTY, "the directory has objects", path)
        self._made_directories.forget(path)
