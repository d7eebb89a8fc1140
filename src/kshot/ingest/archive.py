"""Extracts a zip or tar archive of unknown origin: every member is checked before the first is written."""

import bz2
import gzip
import io
import lzma
import os
import posixpath
import re
import shutil
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast

from kshot.data.folders import Refused
from kshot.data.names import is_system
from kshot.errors import DataError
from kshot.ingest.code_pages import check_code_page, zip_name
from kshot.printing import storable

MAX_MEMBERS = 1_000_000
MAX_TOTAL_BYTES = 64 * 2**30
MAX_RATIO = 200  # of extracted to packed bytes, once more than _RATIO_FROM_BYTES are extracted

_RATIO_FROM_BYTES = 64 * 2**20
_CHUNK_BYTES = 2**20
_MAX_READ_BYTES = 2**24  # no honest member name or extended header is longer
_MAX_PART_BYTES = 255
_MAX_PATH_BYTES = 2048  # file systems take 4,096 with the folder around
_DOS_FOLDER = 0x10
_GNU_LABEL, _GNU_FOLDER = b"V", b"D"  # of the whole tar; and of an incremental one, with a list of names
_DRIVE = re.compile(r"[A-Za-z]:[/\\]")
_NEXT = "next: unpack it with another program, and ingest the folder"
_FOREIGN = ((b"7z\xbc\xaf\x27\x1c", "7z"), (b"Rar!", "RAR"), (b"\x28\xb5\x2f\xfd", "Zstandard"))
_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_COMPRESSIONS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))
_DAMAGE = (OSError, EOFError, ValueError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


Kind = Literal["file", "folder", "link", "device", "encrypted"]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One entry of an archive, as its header describes it.

    Bytes of `name` that are not UTF-8 are lone surrogates in it. `link_to` is what a link names, as a path within the
    archive that need not be there.
    """

    name: str
    size_bytes: int
    kind: Kind
    open: Callable[[], IO[bytes]]
    link_to: str = ""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Where each file is extracted to, which of those files each link stands for, and what is left out."""

    files: dict[Path, Member]
    links: dict[Path, Path]
    refused: tuple[Refused, ...]


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(_SUFFIXES)


def extract(path: Path, folder: Path, names: str = "") -> tuple[Refused, ...]:
    """Extract into the empty `folder`, with names in Unicode NFC. Return the members that are no plain file.

    `names` is the code page of member names that do not say theirs: of the older zips, and of any tar. A backslash in
    a zip is a separator. A link to a file of the archive is that file. Refused one by one: other links, devices,
    and names that are not UTF-8 or longer than a file system takes.

    Raise DataError before anything is written: absolute names, `..`, encrypted members, names that occur twice, more
    than MAX_MEMBERS members, MAX_TOTAL_BYTES bytes or MAX_RATIO times the archive's size. An archive whose
    compressed data turns out damaged raises as well; what was extracted by then is left in `folder`.
    """
    check_code_page(names)
    try:
        with _members(path, names) as members:
            plan = _checked(path, members, free_bytes=shutil.disk_usage(folder).free)
            for target, member in plan.files.items():
                _write(member, folder / target)
            for target, original in plan.links.items():
                _link(folder / original, folder / target)
    except NotImplementedError as error:
        raise DataError(f"{path.name} uses a compression that is not supported: {error}; {_NEXT}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} has a member name that is marked as UTF-8 and is not; {_NEXT}") from error
    except DataError:
        raise
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{path.name} cannot be extracted to {folder}: {error.strerror}") from error
        found = f"{path.name} is damaged or not an archive: {error or type(error).__name__}"
        raise DataError(f"{found}; needed a whole zip or tar; next: copy or download it again") from error
    return plan.refused


@contextmanager
def _members(path: Path, names: str) -> Iterator[Iterator[Member]]:
    if _is_zip(path):
        with zipfile.ZipFile(path) as archive:
            yield (_zip_member(path.name, archive, info, names) for info in archive.infolist())
        return
    with (
        _decompressed(path) as stream,
        tarfile.open(
            fileobj=_Bounded(stream), mode="r:", encoding=names or "utf-8", errors="surrogateescape"
        ) as archive,
    ):
        yield _tar_members(archive)


def _is_zip(path: Path) -> bool:
    """By its first bytes: a tar may end with a zip. A zip that runs begins with a program."""
    with path.open("rb") as file:
        start = file.read(8)
    foreign = next((name for magic, name in _FOREIGN if start.startswith(magic)), None)
    if foreign is not None:
        raise DataError(f"{path.name} is a {foreign} archive by its content; needed a zip or a tar; {_NEXT}")
    return start.startswith(b"PK") or (path.suffix.lower() == ".zip" and zipfile.is_zipfile(path))


def _zip_member(path_name: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo, names: str) -> Member:
    name = zip_name(path_name, info, names).replace("\\", "/")
    kinds: dict[int, Kind] = {0: "file", stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}
    kind = kinds.get(stat.S_IFMT(info.external_attr >> 16), "device")
    if kind == "file" and (name.endswith("/") or (info.external_attr & _DOS_FOLDER and not info.file_size)):
        kind = "folder"
    if info.flag_bits & 1:
        kind = "encrypted"
    return Member(
        name=name,
        size_bytes=info.file_size,
        kind=kind,
        open=lambda: archive.open(info),
        link_to=posixpath.join(posixpath.dirname(name), _zip_link(archive, info)) if kind == "link" else "",
    )


def _zip_link(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str:
    """A zip holds what a link names as the content of the member."""
    with archive.open(info) as content:
        return content.read(_MAX_PATH_BYTES).decode("utf-8", "surrogateescape")


def _tar_members(archive: tarfile.TarFile) -> Iterator[Member]:
    for info in archive:
        if info.type != _GNU_LABEL:
            yield _tar_member(archive, info)
    assert archive.fileobj is not None, "an open archive has its stream"
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes any odd header for the end
        raise DataError(f"the archive is damaged or truncated after {len(archive.getnames())} members")


def _tar_member(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    kind: Kind = "device"
    if info.issym() or info.islnk():
        kind = "link"
    elif info.isdir() or info.type == _GNU_FOLDER:
        kind = "folder"
    elif info.isreg():
        kind = "file"
    beside = posixpath.dirname(info.name) if info.issym() else ""  # a hard link names a member
    return Member(
        name=info.name,
        size_bytes=info.size,
        kind=kind,
        open=lambda: _tar_file(archive, info),
        link_to=posixpath.join(beside, info.linkname) if kind == "link" else "",
    )


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


def _checked(path: Path, members: Iterator[Member], *, free_bytes: int) -> _Plan:
    """Stop at the first offence, before the data of any file is read."""
    archive, limits = path.name, _Limits(path, free_bytes)
    files: dict[Path, Member] = {}
    links: dict[Path, Member] = {}
    refused: list[Refused] = []
    folders: set[Path] = set()
    for count, member in enumerate(members, start=1):
        if count > MAX_MEMBERS:
            raise DataError(f"{archive} has more than {MAX_MEMBERS} members")
        target = _target(archive, member)
        reason = _reason_to_refuse(member, target)
        if reason is not None:
            if member.kind != "folder" and not _is_system(target):
                refused.append(Refused(source=storable(str(target)), reason=reason))
            continue
        folders.update(target.parents)
        if member.kind == "folder":
            folders.add(target)
            continue
        if target in files or target in links:
            raise DataError(f"{archive}: member {member.name!r} occurs twice; needed one file a name; {_NEXT}")
        (links if member.kind == "link" else files)[target] = member
        limits.add(member.size_bytes)
    clash = next((target for target in (*files, *links) if target in folders), None)
    if clash is not None:
        raise DataError(f"{archive}: {str(clash)!r} is both a file and a folder; {_NEXT}")
    ends = _ends(links)
    originals = {target: end for target, end in ends.items() if end is not None and end in files}
    for original in originals.values():
        limits.add(files[original].size_bytes)
    refused.extend(
        Refused(source=storable(str(target)), reason=_link_reason(end, folders))
        for target, end in ends.items()
        if target not in originals and not _is_system(target)
    )
    return _Plan(files=files, links=originals, refused=tuple(sorted(refused, key=lambda row: row.source)))


class _Limits:
    def __init__(self, path: Path, free_bytes: int) -> None:
        self._archive, self._archive_bytes, self._free_bytes = path.name, path.stat().st_size, free_bytes
        self._total_bytes = 0

    def add(self, size_bytes: int) -> None:
        """Raise DataError where the files so far and one of `size_bytes` are more than may be extracted."""
        self._total_bytes += size_bytes
        most = min(MAX_TOTAL_BYTES, self._free_bytes)
        if self._total_bytes > most:
            raise DataError(
                f"{self._archive} extracts to more than {most} bytes "
                f"({self._free_bytes} are free, at most {MAX_TOTAL_BYTES} are extracted)"
            )
        if self._total_bytes > max(_RATIO_FROM_BYTES, MAX_RATIO * self._archive_bytes):
            raise DataError(f"{self._archive} extracts to more than {MAX_RATIO} times its {self._archive_bytes} bytes")


def _target(archive: str, member: Member) -> Path:
    if member.kind == "encrypted":
        raise DataError(f"{archive}: member {member.name!r} is encrypted; needed plain files and folders; {_NEXT}")
    name = unicodedata.normalize("NFC", member.name)
    for reading in {name, name.replace("\\", "/")}:
        if _DRIVE.match(reading):
            raise DataError(
                f"{archive}: member {member.name!r} begins with a drive letter, and would be written outside; "
                f"needed relative names; {_NEXT}"
            )
        if reading.startswith("/") or ".." in reading.split("/"):
            raise DataError(
                f"{archive}: member {member.name!r} would be written outside; needed relative names without '..'"
            )
    target = Path(name)
    if member.kind != "folder" and not target.parts:
        raise DataError(f"{archive}: a member has no name; {_NEXT}")
    return target


def _reason_to_refuse(member: Member, target: Path) -> str | None:
    """None for what can be extracted, as far as the member alone says."""
    if member.kind == "device":
        return "a device or a pipe"
    if "\0" in member.name:
        return "its name has a zero byte"
    if any("\ud800" <= letter <= "\udfff" for letter in member.name):
        return "its name is not UTF-8; --names says in which code page it is"
    if any(len(part.encode()) > _MAX_PART_BYTES for part in target.parts):
        return f"its name has a part of over {_MAX_PART_BYTES} bytes; shorten it"
    if len(str(target).encode()) > _MAX_PATH_BYTES:
        return f"its name has over {_MAX_PATH_BYTES} bytes; shorten it"
    return None


def _is_system(target: Path) -> bool:
    return any(map(is_system, target.parts))


def _within(link_to: str) -> Path | None:
    """The path within the archive; None where it leads outside."""
    path = posixpath.normpath(unicodedata.normalize("NFC", link_to))
    return None if path.startswith(("/", "../")) or path == ".." else Path(path)


def _ends(links: dict[Path, Member]) -> dict[Path, Path | None]:
    """What each link names in the end, through other links: None for outside, a link for links in a circle."""
    named = {target: _within(member.link_to) for target, member in links.items()}

    def end(target: Path) -> Path | None:
        passed: set[Path] = set()
        at: Path | None = target
        while at is not None and at in named and at not in passed:
            passed.add(at)
            at = named[at]
        return at

    return {target: end(target) for target in links}


def _link_reason(end: Path | None, folders: set[Path]) -> str:
    if end is None:
        return "a link that leads outside the archive"
    return "a link to a folder" if end in folders else "a link to nothing in the archive"


def _write(member: Member, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    left = member.size_bytes
    with member.open() as source, target.open("xb") as file:
        while chunk := source.read(min(_CHUNK_BYTES, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise DataError(f"member {member.name!r} holds more than the {member.size_bytes} bytes that it states")
            file.write(chunk)


def _link(original: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(original, target)
    except OSError:  # not every file system has hard links
        shutil.copyfile(original, target)
