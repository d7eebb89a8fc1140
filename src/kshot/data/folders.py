"""Which files of a folder may hold items, and what is left out and why: one rule for ingest and for predict.

A file whose name is not that of an item is left out (`kshot.data.names`); what may be a mask by its name is one where
the headers of both pictures allow it. Links to nothing or in a circle, pipes, devices and folders without the right to
read are refused, and so are names that are not UTF-8. A link to a file is that file, and a link to a folder is that
folder, which is read once. Every other file may hold an item; whether it does, the kind of item finds when it reads it.
"""

import errno
import os
import stat
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from kshot.data.items.formats import size_and_mode
from kshot.data.names import (
    PICTURE_FOLDERS,
    Reason,
    is_likely_mask_folder,
    is_system,
    mask_folders,
    masks,
    reason_to_leave_out,
    stem_of,
    stems_of_pictures,
)
from kshot.errors import DataError
from kshot.printing import printable, storable

LAYOUTS = "class/picture or group/class/picture"

_MASK_MODES = ("1", "L", "P")
_Identity = tuple[int, int]  # of a folder on this machine: device and inode

Parts = tuple[str, ...]  # the names of a path within a folder, in Unicode NFC


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """What is no item, and is not meant to be one. `source` is its path within the folder, as a file can hold it."""

    source: str
    reason: Reason


@dataclass(frozen=True, kw_only=True)
class Refused:
    """What is meant to be an item, or a class, and cannot be one."""

    source: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class FoundFile:
    parts: Parts
    path: Path

    @property
    def folders(self) -> Parts:
        return self.parts[:-1]

    @property
    def name(self) -> str:
        return self.parts[-1]

    @property
    def id(self) -> str:
        return "/".join(self.parts)


@dataclass(frozen=True, kw_only=True)
class Tree:
    """What a folder holds, each part in order of name.

    files: may hold items. notes: those of `left_out` that are annotations or notes, which may be tables of labels.
    empty: folders in which there is nothing that may hold an item.
    """

    folder: Path
    files: tuple[FoundFile, ...]
    notes: tuple[FoundFile, ...]
    left_out: tuple[LeftOut, ...]
    refused: tuple[Refused, ...]
    empty: tuple[Parts, ...]


def read_tree(folder: Path, *, keep_masks: bool = False) -> Tree:
    """Walk `folder`. Raise DataError where it cannot be read, or two names differ only in their Unicode form."""
    walk = _Walk(keep_masks=keep_masks)
    try:
        entries = _entries(folder)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}; needed a folder") from error
    walk.enter_all(entries, _identity(os.stat(folder)))
    files = sorted(walk.files, key=lambda file: file.id)
    for first, second in pairwise(files):
        if first.id == second.id:
            raise DataError(
                f"{first.id!r} occurs twice, in two Unicode forms; needed one file a name; next: rename one of them"
            )
    return Tree(
        folder=folder,
        files=tuple(files),
        notes=tuple(sorted(walk.notes, key=lambda file: file.id)),
        left_out=tuple(sorted(walk.left_out, key=lambda row: row.source)),
        refused=tuple(sorted(walk.refused, key=lambda row: row.source)),
        empty=tuple(sorted(walk.entered - walk.some)),
    )


def check_class_folders(folders: Iterable[Parts]) -> None:
    """Raise DataError unless the folders that hold files are class or group/class, and none lies in another."""
    with_files = dict.fromkeys(folders)
    inner = next(iter(with_files), ())[:-1]
    if len(inner) > 1 and all(parts[:-1] == inner for parts in with_files):
        raise DataError(
            f"the class folders lie {len(inner) + 1} levels down, in {printable('/'.join(inner))!r} alone; needed "
            f"{LAYOUTS}; next: give that folder itself"
        )
    for parts in with_files:
        name = "/".join(parts)
        if len(parts) > 2:
            raise DataError(
                f"{name!r} is a folder {len(parts)} levels down that holds pictures; needed {LAYOUTS}; "
                f"next: move its pictures up"
            )
        if parts[:-1] in with_files and parts[:-1]:
            raise DataError(
                f"{parts[0]!r} holds pictures, and so does the folder {name!r} in it; needed {LAYOUTS}; "
                f"next: move the pictures of one of the two"
            )


def without_picture_folders(folders: Iterable[Parts]) -> dict[Parts, Parts]:
    """Each folder, without a level such as `images` that is alone in its parent, at the end or at the top."""
    folders = tuple(folders)
    children: dict[Parts, set[str]] = {}
    for folder in folders:
        for depth in range(len(folder)):
            children.setdefault(folder[:depth], set()).add(folder[depth])
    with_files = set(folders)

    def alone(folder: Parts) -> bool:
        parent = folder[:-1]
        return folder[-1].casefold() in PICTURE_FOLDERS and len(children[parent]) == 1 and parent not in with_files

    meant = {}
    for folder in folders:
        parts = folder[:-1] if folder and alone(folder) else folder
        meant[folder] = parts[1:] if len(parts) > 1 and alone(parts[:1]) else parts
    return meant


class _Walk:
    """Real folders are read first, and then those behind links, so that a folder is read under its own name."""

    def __init__(self, *, keep_masks: bool) -> None:
        self._keep_masks = keep_masks
        self._read: set[_Identity] = set()
        self._links: deque[tuple[os.DirEntry[str], Parts, frozenset[_Identity]]] = deque()
        self.files: list[FoundFile] = []
        self.notes: list[FoundFile] = []
        self.left_out: list[LeftOut] = []
        self.refused: list[Refused] = []
        self.entered: set[Parts] = set()
        self.some: set[Parts] = {()}  # folders that hold more than what is left out

    def enter_all(self, entries: "list[os.DirEntry[str]]", identity: "_Identity") -> None:
        self._read.add(identity)
        self._enter(entries, (), frozenset({identity}))
        while self._links:
            self._enter_folder(*self._links.popleft())

    def _enter(self, entries: "list[os.DirEntry[str]]", parts: Parts, around: "frozenset[_Identity]") -> None:
        """Take what a folder holds; `around` are the folder and those that it lies in."""
        folders: list[os.DirEntry[str]] = []
        plain: list[os.DirEntry[str]] = []
        for entry in entries:
            (folders if _is_folder(entry) else plain).append(entry)
        self.entered.add(parts)
        found = [(_found(entry, parts), entry.is_file(follow_symlinks=False)) for entry in plain]
        kept = [file for file, is_plain in found if self._may_hold_an_item(file, is_plain=is_plain)]
        if kept:
            self._hold_some(parts)
        of_masks = set() if self._keep_masks else _masks(kept)
        for file in kept:
            if file.name in of_masks:
                self._leave_out(file.parts, Reason.MASK)
            else:
                self.files.append(file)
        of_masks = set() if self._keep_masks else _mask_folders([_found(entry, parts) for entry in folders])
        exported = {f"{stem_of(file.name)}_json" for file, _ in found} if folders else set()  # by Labelme
        for entry in folders:
            if entry.name in exported:
                for inside in _all_below(_found(entry, parts)):
                    self._leave_out(inside.parts, Reason.NOTE)
            else:
                self._enter_child(entry, parts, around, of_masks)

    def _enter_child(
        self, entry: "os.DirEntry[str]", parts: Parts, around: "frozenset[_Identity]", of_masks: set[str]
    ) -> None:
        child = _found(entry, parts)
        if is_system(entry.name):
            for inside in _all_below(child):
                self._leave_out(inside.parts, Reason.SYSTEM)
            return  # a folder of nothing else is an empty class
        if child.name in of_masks:
            self._hold_some(parts)
            for inside in _all_below(child):
                self._leave_out(inside.parts, self._noted(inside) or Reason.MASK)
        elif not _is_utf8(entry.name):
            self._hold_some(parts)
            for parts_inside in tuple(inside.parts for inside in _all_below(child)) or (child.parts,):
                self._refuse(parts_inside, "the name of its folder is not UTF-8; rename it")
        elif entry.is_symlink():
            self._links.append((entry, parts, around))
        else:
            self._enter_folder(entry, parts, around)

    def _enter_folder(self, entry: "os.DirEntry[str]", parts: Parts, around: "frozenset[_Identity]") -> None:
        child = _found(entry, parts)
        why = None
        try:
            identity = _identity(entry.stat())
            if identity in around:
                why = "a link to a folder that it lies in"
            elif identity in self._read:
                why = "a link to a folder that is read already"
            else:
                entries = _entries(child.path)
        except OSError as error:
            why = f"cannot be read: {error.strerror}"
        if why is not None:
            self._hold_some(parts)
            self._refuse(child.parts, why)
        else:
            self._read.add(identity)
            self._enter(entries, child.parts, around | {identity})

    def _hold_some(self, parts: Parts) -> None:
        while parts not in self.some:
            self.some.add(parts)
            parts = parts[:-1]

    def _may_hold_an_item(self, file: FoundFile, *, is_plain: bool) -> bool:
        if reason := self._noted(file):
            self._leave_out(file.parts, reason)
        elif not _is_utf8(file.name):
            self._refuse(file.parts, "its name is not UTF-8; rename it")
        elif not is_plain and (why := _no_plain_file(file.path)) is not None:
            self._refuse(file.parts, why)
        else:
            return True
        return False

    def _noted(self, file: FoundFile) -> Reason | None:
        """Why a file of this name is left out, if it is; notes are kept, which may be tables."""
        reason = reason_to_leave_out(file.name)
        if reason is Reason.NOTE and _is_utf8(file.name):
            self.notes.append(file)
        return reason

    def _leave_out(self, parts: Parts, reason: Reason) -> None:
        self.left_out.append(LeftOut(source=storable("/".join(parts)), reason=reason))

    def _refuse(self, parts: Parts, reason: str) -> None:
        self.refused.append(Refused(source=storable("/".join(parts)), reason=reason))


def _masks(files: Sequence[FoundFile]) -> set[str]:
    """The names of those of the files of one folder that are masks, by name or by name and header."""
    sure, likely = masks(file.name for file in files)
    paths = {file.name: file.path for file in files} if likely else {}
    return sure | {name for name, picture in likely.items() if _may_be_mask(paths[name], paths[picture])}


def _mask_folders(folders: Sequence[FoundFile]) -> set[str]:
    """The names of those of sibling folders that hold masks: at least half of their files are named as pictures are."""
    named, beside = mask_folders(folder.name for folder in folders)
    if not beside:
        return set()
    pictures = {
        stem_of(file.name): file.path
        for folder in folders
        if folder.name in beside
        for file in _all_below(folder)
        if reason_to_leave_out(file.name) is None
    }
    return {folder.name for folder in folders if folder.name in named and _mirrors(folder, pictures)}


def _mirrors(folder: FoundFile, pictures: Mapping[str, Path]) -> bool:
    files = [file for file in _all_below(folder) if not is_system(file.name)]
    pairs = [
        (file, next((pictures[stem] for stem in stems_of_pictures(file.name) if stem in pictures), None))
        for file in files
    ]
    found = [(file, picture) for file, picture in pairs if picture is not None]
    if not is_likely_mask_folder(folder.name):
        return 2 * len(found) >= len(files)
    first = next(((file, picture) for file, picture in found if reason_to_leave_out(file.name) is None), None)
    return 2 * len(found) >= len(files) and (first is None or _may_be_mask(first[0].path, first[1]))


def _may_be_mask(path: Path, picture: Path) -> bool:
    """Whether the headers allow it: of one size, and at most 8 bits of one channel. One that is damaged does."""
    found, other = size_and_mode(path), size_and_mode(picture)
    return found is None or other is None or (found[0] == other[0] and found[1] in _MASK_MODES)


def _found(entry: "os.DirEntry[str]", parts: Parts) -> FoundFile:
    return FoundFile(parts=(*parts, unicodedata.normalize("NFC", entry.name)), path=Path(entry.path))


def _identity(status: os.stat_result) -> "_Identity":
    return status.st_dev, status.st_ino


def _entries(folder: Path) -> "list[os.DirEntry[str]]":
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Also a link to one. What scandir has told already is not asked of the disk again."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry))


def _no_plain_file(path: Path) -> str | None:
    """None for a plain file, and for a link to one."""
    try:
        return None if stat.S_ISREG(path.stat().st_mode) else "not a plain file"
    except OSError as error:
        reasons = {errno.ENOENT: "a link to nothing", errno.ELOOP: "a link in a circle"}
        return reasons.get(error.errno or 0, f"cannot be read: {error.strerror}")


def _all_below(folder: FoundFile) -> Iterator[FoundFile]:
    """Every file below `folder`; links to folders, and folders that cannot be read, count as one."""
    try:
        entries = _entries(folder.path)
    except OSError:
        yield folder
        return
    for entry in entries:
        inside = _found(entry, folder.parts)
        if entry.is_dir(follow_symlinks=False):
            yield from _all_below(inside)
        else:
            yield inside


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)
