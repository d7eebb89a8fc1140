"""Where a service keeps files: a folder of this machine, or a bucket, with the same few operations.

A write is all or nothing, and done when the call returns: on disk the bytes are synced before the file has its name,
in a bucket an object is put in one request. Paths are parts joined by "/", below the root.
"""

import os
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from kshot.errors import ConfigError

_UNFINISHED = ".unfinished"
_AT_ONCE = 16  # requests to a bucket


class Files(Protocol):
    """`path` is relative, such as "a/b". Reading or removing what is not there raises FileNotFoundError."""

    near: bool
    """Whether asking costs microseconds rather than a request."""

    def write(self, path: str, content: bytes) -> None: ...

    def read(self, path: str) -> bytes: ...

    def read_many(self, paths: Sequence[str]) -> list[bytes]: ...

    def exists(self, path: str) -> bool: ...

    def remove(self, path: str) -> None: ...

    def remove_tree(self, path: str) -> None:
        """Everything below `path`; nothing where there is nothing."""
        ...

    def below(self, path: str) -> list[str]:
        """The paths of all files below `path`, sorted; each relative to `path`."""
        ...

    def names(self) -> list[str]:
        """The first parts of all paths, sorted."""
        ...


def open_files(address: str) -> Files:
    """The files under a folder, or under s3://BUCKET/PREFIX and what else fsspec knows."""
    if "://" not in address:
        return FolderFiles(Path(address))
    import fsspec

    try:
        system, root = fsspec.core.url_to_fs(address, **_options(address))
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{address}: {error}; need a folder or s3://BUCKET/PREFIX") from error
    return BucketFiles(system, root)


def _options(address: str) -> dict[str, Any]:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return {"endpoint_url": endpoint} if address.startswith("s3://") and endpoint else {}


class FolderFiles:
    near = True

    def __init__(self, root: Path) -> None:
        self._root = root

    def write(self, path: str, content: bytes) -> None:
        target = self._root / path
        self._make_folder(target.parent)
        unfinished = target.with_name(f".{uuid4().hex}{_UNFINISHED}")
        try:
            with unfinished.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(target)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        _sync(target.parent)

    def read(self, path: str) -> bytes:
        return (self._root / path).read_bytes()

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        return [self.read(path) for path in paths]

    def exists(self, path: str) -> bool:
        return (self._root / path).is_file()

    def remove(self, path: str) -> None:
        target = self._root / path
        target.unlink()
        _sync(target.parent)

    def remove_tree(self, path: str) -> None:
        shutil.rmtree(self._root / path, ignore_errors=True)

    def below(self, path: str) -> list[str]:
        top = self._root / path
        found = []
        for folder, _, files in os.walk(top):
            inside = os.path.relpath(folder, top)
            names = [name for name in files if not name.endswith(_UNFINISHED)]
            found.extend(names if inside == "." else [f"{inside}/{name}" for name in names])
        return sorted(found)

    def names(self) -> list[str]:
        return sorted(entry.name for entry in os.scandir(self._root)) if self._root.is_dir() else []

    def _make_folder(self, folder: Path) -> None:
        """Folders are synced into their parents: a file is not there if the way to it is not."""
        if folder.is_dir():
            return
        if folder != folder.parent:
            self._make_folder(folder.parent)
        folder.mkdir(exist_ok=True, mode=0o700)
        _sync(folder.parent)


class BucketFiles:
    near = False

    def __init__(self, system: Any, root: str) -> None:
        self._system, self._root = system, root.rstrip("/")
        self._lock = threading.Lock()  # of the cache of listings, which is not used

    def write(self, path: str, content: bytes) -> None:
        self._system.pipe_file(self._full(path), content)

    def read(self, path: str) -> bytes:
        content: bytes = self._system.cat_file(self._full(path))
        return content

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(self.read, paths))

    def exists(self, path: str) -> bool:
        self._forget()
        return bool(self._system.isfile(self._full(path)))

    def remove(self, path: str) -> None:
        if not self.exists(path):
            raise FileNotFoundError(path)
        self._system.rm_file(self._full(path))

    def remove_tree(self, path: str) -> None:
        found = self.below(path)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda name: self._system.rm_file(self._full(f"{path}/{name}")), found))

    def below(self, path: str) -> list[str]:
        self._forget()
        top = self._full(path)
        try:
            found = self._system.find(top)
        except FileNotFoundError:
            return []
        return sorted(name.removeprefix(f"{top}/") for name in found)

    def names(self) -> list[str]:
        self._forget()
        try:
            found = self._system.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        return sorted(name.rstrip("/").rsplit("/", 1)[1] for name in found)

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _forget(self) -> None:
        """What another process put there meanwhile has to be seen."""
        with self._lock:
            self._system.invalidate_cache()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
