"""What a user hands to ingest: a folder of class folders, a CSV of path,class[,group][,split], or an
archive of either. Each becomes a list of files with id, class and group, in order of id.

Layouts of a folder: class/file, or group/class/file, where the class is then called "group/class". A CSV
at the top of a folder or archive with the columns path and class takes the place of the layout. Names are
brought to Unicode NFC. Hidden files, and files that file managers leave behind, are ignored.
"""

import csv
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from kshot.data.packed import Quarantined
from kshot.errors import DataError
from kshot.ingest.archive import extract, is_archive
from kshot.ingest.splits import add_given

_IGNORED = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_LAYOUTS = "needed class/file or group/class/file"


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    id: str
    class_name: str
    group: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Source:
    """`given_splits` holds the split of each class that a CSV's column names; `refused` what is no item."""

    name: str
    files: tuple[SourceFile, ...]
    given_splits: dict[str, str] = field(default_factory=dict)
    refused: tuple[Quarantined, ...] = ()


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Read what `path` holds; the files of an archive exist until the context ends. Raise DataError."""
    if not path.exists():
        raise DataError(f"{path} does not exist; needed a folder of class folders, a CSV, a zip or a tar")
    if path.is_dir():
        yield _read_folder(path, path.resolve().name)
    elif is_archive(path):
        with tempfile.TemporaryDirectory(prefix="kshot-ingest-") as temporary:
            extract(path, Path(temporary))
            yield _read_folder(_unwrapped(Path(temporary)), path.name)
    elif path.suffix.lower() == ".csv":
        yield _read_csv(path, path.name)
    else:
        raise DataError(
            f"{path} is a {path.suffix or 'plain'} file; needed a folder of class folders, a CSV, a zip or a tar"
        )


def check_class_names(names: Iterable[str]) -> None:
    """Raise DataError for class names that differ only in case, and for control characters in one."""
    seen: dict[str, str] = {}
    for name in names:
        if any(unicodedata.category(letter) == "Cc" for letter in name):
            raise DataError(f"class name {name!r} has control characters; rename it")
        twin = seen.setdefault(_folded(name), name)
        if twin != name:
            raise DataError(f"classes {twin!r} and {name!r} differ only in case or spelling of accents; rename one")


def _read_folder(folder: Path, name: str) -> Source:
    table = _table_of(folder)
    if table is not None:
        return _read_csv(table, name)
    files: list[SourceFile] = []
    refused: list[Quarantined] = []
    for entry in _visible(folder):
        if not entry.is_dir():
            refused.append(Quarantined(source=entry.name, reason=f"not in a class folder; {_LAYOUTS}"))
            continue
        _read_class_or_group(entry, folder, files, refused)
    _check_ids(files)
    return Source(name=name, files=tuple(sorted(files, key=lambda file: file.id)), refused=tuple(refused))


def _read_class_or_group(folder: Path, top: Path, files: list[SourceFile], refused: list[Quarantined]) -> None:
    """Add the files of a class folder, or of every class folder in a group folder."""
    entries = _visible(folder)
    folders = [entry for entry in entries if entry.is_dir()]
    plain = [entry for entry in entries if not entry.is_dir()]
    if not folders:
        _add_class(plain, folder, top, "", files, refused)
        return
    if plain:
        raise DataError(
            f"{folder.name!r} holds files, such as {plain[0].name!r}, "
            f"and folders, such as {folders[0].name!r}; {_LAYOUTS}"
        )
    for class_folder in folders:
        inside = _visible(class_folder)
        deeper = next((entry for entry in inside if entry.is_dir()), None)
        if deeper is not None:
            raise DataError(f"{str(deeper.relative_to(top))!r} is a folder three levels down; {_LAYOUTS}")
        _add_class(inside, class_folder, top, _nfc(folder.name), files, refused)


def _add_class(
    plain: list[Path], folder: Path, top: Path, group: str, files: list[SourceFile], refused: list[Quarantined]
) -> None:
    class_name = _nfc(folder.relative_to(top).as_posix())
    if not plain:
        refused.append(Quarantined(source=class_name, reason="the class folder holds no file"))
    files.extend(
        SourceFile(id=f"{class_name}/{_nfc(path.name)}", class_name=class_name, group=group, path=path)
        for path in plain
    )


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not _is_ignored(entry.name))


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in _IGNORED


def _unwrapped(folder: Path) -> Path:
    """Skip the single folder that archives tend to wrap everything in."""
    entries = _visible(folder)
    if len(entries) != 1 or not entries[0].is_dir():
        return folder
    inside = _visible(entries[0])
    wraps = any(entry.is_dir() for entry in inside) or _table_of(entries[0]) is not None
    groups = any(child.is_dir() for entry in inside if entry.is_dir() for child in _visible(entry))
    alone = wraps and not groups and len(inside) == 1
    return entries[0] if wraps and not alone else folder


def _table_of(folder: Path) -> Path | None:
    """The CSV at the top of `folder` with the columns path and class, if there is one."""
    tables = [entry for entry in _visible(folder) if entry.suffix.lower() == ".csv" and entry.is_file()]
    tables = [table for table in tables if {"path", "class"} <= set(_header(table))]
    if len(tables) > 1:
        raise DataError(
            f"found {len(tables)} CSVs of path,class: {tables[0].name!r} and {tables[1].name!r}; needed one"
        )
    return tables[0] if tables else None


def _header(table: Path) -> list[str]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            return [cell.strip() for cell in next(csv.reader(file), [])]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table.name} cannot be read as a CSV in UTF-8: {error}") from error


def _read_csv(table: Path, name: str) -> Source:
    header = _header(table)
    if not {"path", "class"} <= set(header):
        raise DataError(
            f"{table.name} has the columns {', '.join(header) or '(none)'}; needed path,class[,group][,split]"
        )
    files: list[SourceFile] = []
    refused: list[Quarantined] = []
    given: dict[str, str] = {}
    for where, row in _rows(table, header):
        file = _row_file(table.parent, row, where)
        if row.get("split"):
            add_given(given, file.class_name, row["split"], where=where)
        if file.path.is_file():
            files.append(file)
        else:
            refused.append(Quarantined(source=file.id, reason="no such file"))
    _check_ids(files)
    ordered = tuple(sorted(files, key=lambda file: file.id))
    return Source(name=name, files=ordered, given_splits=given, refused=tuple(refused))


def _rows(table: Path, header: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row stands, and its cells by column."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            next(reader)
            for row in reader:
                where = f"{table.name} line {reader.line_num}"
                if len(row) not in (0, len(header)):
                    raise DataError(f"{where}: found {len(row)} columns; needed {len(header)}")
                if row:
                    yield where, dict(zip(header, map(str.strip, row), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table.name} cannot be read as a CSV in UTF-8: {error}") from error


def _row_file(folder: Path, row: dict[str, str], where: str) -> SourceFile:
    path = PurePosixPath(row["path"])
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise DataError(f"{where}: found path {row['path']!r}; needed one relative to the CSV's folder, without '..'")
    if not row["class"]:
        raise DataError(f"{where}: the class is empty")
    return SourceFile(
        id=_nfc(path.as_posix()),
        class_name=_nfc(row["class"]),
        group=_nfc(row.get("group", "")),
        path=folder.joinpath(*path.parts),
    )


def _check_ids(files: Iterable[SourceFile]) -> None:
    seen: dict[str, SourceFile] = {}
    for file in files:
        twin = seen.setdefault(file.id, file)
        if twin is not file:
            raise DataError(
                f"{file.id!r} occurs twice (as {twin.class_name!r} and {file.class_name!r}); "
                "needed one file and class a name"
            )


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
