"""Extracts a zip or tar archive of unknown origin: every member is checked before the first is written."""

import bz2
import gzip
import io
import lzma
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from kshot.errors import DataError

MAX_MEMBERS = 1_000_000
MAX_TOTAL_BYTES = 64 * 2**30
MAX_RATIO = 200  # of extracted to packed bytes, once more than _RATIO_FROM_BYTES are extracted

_RATIO_FROM_BYTES = 64 * 2**20
_CHUNK_BYTES = 2**20
_MAX_READ_BYTES = 2**24  # no honest member name or extended header is longer
_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_COMPRESSIONS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))
_DAMAGE = (OSError, EOFError, ValueError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One entry of an archive, as its header describes it."""

    name: str
    size_bytes: int
    kind: str  # "file", "folder", or what makes it unacceptable
    open: Callable[[], IO[bytes]]


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(_SUFFIXES)


def extract(path: Path, folder: Path) -> None:
    """Extract into the empty `folder`, with names in Unicode NFC. Raise DataError before anything is written.

    Refused: absolute names, `..`, links, devices, encrypted members, names that occur twice, more than
    MAX_MEMBERS members, MAX_TOTAL_BYTES bytes or MAX_RATIO times the archive's size. An archive whose
    compressed data turns out damaged raises as well; what was extracted by then is left in `folder`.
    """
    try:
        with _members(path) as members:
            files = _checked(path, members, free_bytes=shutil.disk_usage(folder).free)
            for target, member in files.items():
                _write(member, folder / target)
    except NotImplementedError as error:
        raise DataError(f"{path.name} uses a compression that is not supported: {error}") from error
    except DataError:
        raise
    except _DAMAGE as error:
        raise DataError(f"{path.name} is damaged or not an archive: {error or type(error).__name__}") from error


@contextmanager
def _members(path: Path) -> Iterator[Iterator[Member]]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield (_zip_member(archive, info) for info in archive.infolist())
        return
    with _decompressed(path) as stream, tarfile.open(fileobj=_Bounded(stream), mode="r:") as archive:
        yield _tar_members(archive)


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    kinds = {0: "file", stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "a link"}
    kind = kinds.get(stat.S_IFMT(info.external_attr >> 16), "a device")
    if kind == "file" and info.is_dir():
        kind = "folder"
    if info.flag_bits & 1:
        kind = "encrypted"
    return Member(name=info.filename, size_bytes=info.file_size, kind=kind, open=lambda: archive.open(info))


def _tar_members(archive: tarfile.TarFile) -> Iterator[Member]:
    for info in archive:
        yield _tar_member(archive, info)
    assert archive.fileobj is not None, "an open archive has its stream"
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes any odd header for the end
        raise DataError(f"the archive is damaged or truncated after {len(archive.getnames())} members")


def _tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    kind = "a device"
    if info.issym() or info.islnk():
        kind = "a link"
    elif info.isdir():
        kind = "folder"
    elif info.isreg():
        kind = "file"
    return Member(name=info.name, size_bytes=info.size, kind=kind, open=lambda: _tar_file(archive, info))


def _tar_file(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(info)
    assert file is not None, "only regular members are opened"
    return file


@contextmanager
def _decompressed(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as raw:
        start = raw.read(6)
        raw.seek(0)
        for magic, opener in _COMPRESSIONS:
            if start.startswith(magic):
                with opener(raw, "rb") as stream:
                    yield cast(IO[bytes], stream)
                return
        yield raw


class _Bounded(io.RawIOBase):
    """A stream that refuses a read of more than _MAX_READ_BYTES, as tarfile makes for a lying extended header."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_READ_BYTES:
            raise DataError(f"the archive holds a header of {size} bytes; at most {_MAX_READ_BYTES} are read")
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def _checked(path: Path, members: Iterator[Member], *, free_bytes: int) -> dict[Path, Member]:
    """Target path -> member of every file. Stops at the first offence, before reading any member's data."""
    archive, archive_bytes = path.name, path.stat().st_size
    files: dict[Path, Member] = {}
    folders: set[Path] = set()
    total_bytes = 0
    for count, member in enumerate(members, start=1):
        if count > MAX_MEMBERS:
            raise DataError(f"{archive} has more than {MAX_MEMBERS} members")
        target = _target(archive, member)
        folders.update(target.parents)
        if member.kind == "folder":
            folders.add(target)
            continue
        if target in files:
            raise DataError(f"{archive}: member {member.name!r} occurs twice")
        files[target] = member
        total_bytes += member.size_bytes
        if total_bytes > min(MAX_TOTAL_BYTES, free_bytes):
            raise DataError(
                f"{archive} extracts to more than {min(MAX_TOTAL_BYTES, free_bytes)} bytes "
                f"({free_bytes} are free, at most {MAX_TOTAL_BYTES} are extracted)"
            )
        if total_bytes > max(_RATIO_FROM_BYTES, MAX_RATIO * archive_bytes):
            raise DataError(f"{archive} extracts to more than {MAX_RATIO} times its {archive_bytes} bytes")
    clash = next((target for target in files if target in folders), None)
    if clash is not None:
        raise DataError(f"{archive}: {str(clash)!r} is both a file and a folder")
    return files


def _target(archive: str, member: Member) -> Path:
    if member.kind not in ("file", "folder"):
        raise DataError(f"{archive}: member {member.name!r} is {member.kind}; needed plain files and folders")
    name = unicodedata.normalize("NFC", member.name)
    posix = PurePosixPath(name)
    if posix.is_absolute() or ".." in posix.parts or "\\" in name or name[1:2] == ":":
        raise DataError(
            f"{archive}: member {member.name!r} would be written outside; needed relative names without '..'"
        )
    if any(unicodedata.category(letter) == "Cc" for letter in name) or any(
        len(part.encode()) > 255 for part in posix.parts
    ):
        raise DataError(
            f"{archive}: member name {member.name[:80]!r} has control characters or a part of over 255 bytes"
        )
    if member.kind == "file" and not posix.parts:
        raise DataError(f"{archive}: a member has no name")
    return Path(*posix.parts)


def _write(member: Member, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    left = member.size_bytes
    with member.open() as source, target.open("xb") as file:
        while chunk := source.read(min(_CHUNK_BYTES, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise DataError(f"member {member.name!r} holds more than the {member.size_bytes} bytes that it states")
            file.write(chunk)
