"""Which files of a folder may hold items, and what is left out and why: one rule for ingest and for predict.

A file whose name is not that of an item is left out (`kshot.data.names`). Links to nothing or in a circle, pipes,
devices and folders without the right to read are refused, and so are names that are not UTF-8. A link to a file is that
file, and a link to a folder is that folder. Every other file may hold an item; whether it does, the kind of item finds
when it reads it.
"""

import errno
import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from kshot.data.names import Reason, is_system, mask_folders, masks, reason_to_leave_out
from kshot.errors import DataError
from kshot.printing import storable

LAYOUTS = "class/picture or group/class/picture"

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
    walk.enter(entries, (), frozenset({os.path.realpath(folder)}))
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
        empty=tuple(sorted(walk.empty)),
    )


def check_class_folders(folders: Iterable[Parts]) -> None:
    """Raise DataError unless the folders that hold files are class or group/class, and none lies in another."""
    with_files = dict.fromkeys(folders)
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


class _Walk:
    def __init__(self, *, keep_masks: bool) -> None:
        self._keep_masks = keep_masks
        self.files: list[FoundFile] = []
        self.notes: list[FoundFile] = []
        self.left_out: list[LeftOut] = []
        self.refused: list[Refused] = []
        self.empty: list[Parts] = []

    def enter(self, entries: "list[os.DirEntry[str]]", parts: Parts, around: frozenset[str]) -> bool:
        """Take what a folder holds, and say whether anything of it may hold an item.

        `around` are the real paths of the folder and of those that it lies in.
        """
        folders: list[os.DirEntry[str]] = []
        plain: list[os.DirEntry[str]] = []
        for entry in entries:
            (folders if _is_folder(entry) else plain).append(entry)
        found = [(_found(entry, parts), entry.is_file(follow_symlinks=False)) for entry in plain]
        kept = [file for file, is_plain in found if self._may_hold_an_item(file, is_plain=is_plain)]
        of_masks = set() if self._keep_masks else masks(file.name for file in kept)
        for file in kept:
            if file.name in of_masks:
                self._leave_out(file.parts, Reason.MASK)
            else:
                self.files.append(file)
        of_masks = set() if self._keep_masks else mask_folders(entry.name for entry in folders)
        below = [self._enter_child(entry, parts, around, holds_masks=entry.name in of_masks) for entry in folders]
        some = bool(kept) or any(below)
        if parts and not some:
            self.empty.append(parts)
        return some

    def _enter_child(
        self, entry: "os.DirEntry[str]", parts: Parts, around: frozenset[str], *, holds_masks: bool
    ) -> bool:
        child, real = _found(entry, parts), os.path.realpath(entry)
        if is_system(entry.name) or holds_masks:
            for inside in _all_below(child):
                self._leave_out(inside, Reason.SYSTEM if is_system(entry.name) else Reason.MASK)
        elif not _is_utf8(entry.name):
            for inside in tuple(_all_below(child)) or (child.parts,):
                self._refuse(inside, "the name of its folder is not UTF-8; rename it")
        elif real in around:
            self._refuse(child.parts, "a link to a folder that it lies in")
        else:
            try:
                entries = _entries(child.path)
            except OSError as error:
                self._refuse(child.parts, f"cannot be read: {error.strerror}")
            else:
                return self.enter(entries, child.parts, around | {real})
        return not is_system(entry.name)  # a folder of nothing else is no empty class

    def _may_hold_an_item(self, file: FoundFile, *, is_plain: bool) -> bool:
        reason = reason_to_leave_out(file.name)
        if reason is not None:
            self._leave_out(file.parts, reason)
            if reason is Reason.NOTE and _is_utf8(file.name):
                self.notes.append(file)
        elif not _is_utf8(file.name):
            self._refuse(file.parts, "its name is not UTF-8; rename it")
        elif not is_plain and (why := _no_plain_file(file.path)) is not None:
            self._refuse(file.parts, why)
        else:
            return True
        return False

    def _leave_out(self, parts: Parts, reason: Reason) -> None:
        self.left_out.append(LeftOut(source=storable("/".join(parts)), reason=reason))

    def _refuse(self, parts: Parts, reason: str) -> None:
        self.refused.append(Refused(source=storable("/".join(parts)), reason=reason))


def _found(entry: "os.DirEntry[str]", parts: Parts) -> FoundFile:
    return FoundFile(parts=(*parts, unicodedata.normalize("NFC", entry.name)), path=Path(entry.path))


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


def _all_below(folder: FoundFile) -> Iterator[Parts]:
    """Every file below `folder`; links to folders, and folders that cannot be read, count as one."""
    try:
        entries = _entries(folder.path)
    except OSError:
        yield folder.parts
        return
    for entry in entries:
        inside = _found(entry, folder.parts)
        if entry.is_dir(follow_symlinks=False):
            yield from _all_below(inside)
        else:
            yield inside.parts


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)
