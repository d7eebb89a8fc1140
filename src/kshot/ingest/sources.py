"""What a user hands to ingest: a folder of class folders, a table of labels, or an archive of either.

Each becomes a list of files with id, class, group and split, in order of id. Every other file of the source is listed
with a reason. Tables at the top of a folder, or in folders that are named as splits, take the place of class folders
(`tables`); else the levels of folders say what is what (`layout`). The id of a file is its path in the source.
"""

import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from kshot.data.folders import LAYOUTS, FoundFile, LeftOut, Parts, Refused, Tree, read_tree
from kshot.data.names import Reason, is_system
from kshot.errors import DataError
from kshot.ingest.archive import extract, is_archive
from kshot.ingest.layout import Layout, place
from kshot.ingest.splits import add_given, split_of
from kshot.ingest.tables import SUFFIXES, Columns, Pictures, Row, Table, UnknownColumnsError, read_table
from kshot.printing import printable

_OPAQUE = frozenset(
    {".xlsx", ".xls", ".ods", ".parquet", ".feather", ".json", ".xml"}
)  # may hold labels, and are not read
_SEARCHED_BYTES = 64 * 2**20
_SEARCHED_NAMES = 50
_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How to read a source, where the user says so; what he leaves open is found out.

    pictures: the folder in which the pictures of a table lie. tables: False to take classes from folders alone.
    draw_splits: splits that the source gives are not used. names: the encoding of an archive's names.
    """

    columns: Columns = field(default_factory=Columns)
    pictures: Path | None = None
    tables: bool = True
    layout: Layout = ()
    keep_masks: bool = False
    draw_splits: bool = False
    names: str = ""


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    id: str
    class_name: str
    group: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Source:
    """What was understood of a source.

    words: how it was read, in words. given_splits: of each class whose split the source gives, where they are used.
    split_words: by what the source gives splits, or "". remarks: what else a user should know.
    refused: what was meant as an item and is none. left_out: what was not meant as an item.
    """

    name: str
    words: str
    files: tuple[SourceFile, ...]
    given_splits: dict[str, str] = field(default_factory=dict)
    split_words: str = ""
    remarks: tuple[str, ...] = ()
    refused: tuple[Refused, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


@contextmanager
def open_source(path: Path, reading: Reading | None = None) -> Iterator[Source]:
    """Read what `path` holds; the files of an archive exist until the context ends. Raise DataError."""
    reading = reading or Reading()
    shown = printable(str(path))
    if reading.names and not is_archive(path):
        raise DataError(f"--names is the encoding of names in an archive; {shown} is none; next: leave it out")
    if not path.exists():
        raise DataError(f"{shown} does not exist; needed a folder of class folders, a table, a zip or a tar")
    if path.is_dir():
        yield _read_folder(path, printable(path.resolve().name), reading)
    elif is_archive(path):
        with tempfile.TemporaryDirectory(prefix="kshot-ingest-") as temporary:
            refused = extract(path, Path(temporary), reading.names)
            source = _read_folder(_unwrapped(Path(temporary)), printable(path.name), reading)
            yield replace(source, refused=(*refused, *source.refused))
    elif path.suffix.lower() in SUFFIXES:
        yield _read_one_table(path, reading)
    else:
        raise DataError(
            f"{shown} is a {printable(path.suffix) or 'plain'} file; "
            f"needed a folder of class folders, a table ({', '.join(SUFFIXES)}), a zip or a tar"
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


# Folders


def _read_folder(folder: Path, name: str, reading: Reading) -> Source:
    tree = read_tree(folder, keep_masks=reading.keep_masks)
    notes = [note for note in tree.notes if not note.folders or _is_split_folder(note.folders)]
    if reading.tables and notes:
        whole = read_tree(folder, keep_masks=True)  # what a table names is a picture, whatever its name looks like
        tables, remarks = _tables_of(notes, whole, reading)
        if tables and reading.layout:
            raise DataError(
                f"--layout says what folders mean, but {tables[0].table.name} says what the pictures are; "
                "next: leave out --layout, or the tables with --no-tables"
            )
        if tables:
            return _from_tables(tables, whole, name, reading, remarks)
    if reading.columns or reading.pictures:
        raise DataError(f"columns or --images-in are given, and {name} has no table at its top; next: leave them out")
    return _from_folders(tree, name, reading)


def _is_split_folder(folders: Parts) -> bool:
    return len(folders) == 1 and split_of(folders[0]) is not None


def _from_folders(tree: Tree, name: str, reading: Reading) -> Source:
    placement = place(tree.files, reading.layout)
    given: dict[str, str] = {}
    seen: dict[str, str] = {}
    for placed in placement.placed:
        twin = seen.setdefault(placed.class_name, placed.group)
        assert twin == placed.group, "the name of a class holds that of its group"
        if placed.split and not reading.draw_splits:
            add_given(given, placed.class_name, placed.split, where=f"folder {printable(placed.split)!r}")
    loose = [file for file in placement.unlabelled if not file.folders]
    unlabelled = [file for file in placement.unlabelled if file.folders]
    if unlabelled and not placement.placed:
        raise DataError(
            f"the pictures lie in {printable('/'.join(unlabelled[0].folders))!r}, and in no class folder; needed "
            f"{LAYOUTS}, in folders of splits or not, or a table of labels; next: put them into class folders, or say "
            "with --layout class that these folders are the classes"
        )
    return Source(
        name=name,
        words=f"{placement.words}{_depths(placement.words)}",
        files=tuple(
            SourceFile(id=placed.file.id, class_name=placed.class_name, group=placed.group, path=placed.file.path)
            for placed in placement.placed
        ),
        given_splits=given,
        split_words="folders" if given else "",
        refused=(
            *tree.refused,
            *(Refused(source=printable(file.id), reason=f"not in a class folder; needed {LAYOUTS}") for file in loose),
            *(
                Refused(source=printable("/".join(parts)), reason="the folder holds no picture")
                for parts in tree.empty
                if not any(other != parts and other[: len(parts)] == parts for other in tree.empty)
            ),
        ),
        left_out=(
            *tree.left_out,
            *(LeftOut(source=printable(file.id), reason=Reason.UNLABELLED) for file in unlabelled),
        ),
    )


def _depths(words: str) -> str:
    return ", as the names of the folders say" if "split" in words else ""


def _unwrapped(folder: Path) -> Path:
    """Skip the single folder that archives tend to wrap everything in."""
    entries = _visible(folder)
    if len(entries) != 1 or not entries[0].is_dir():
        return folder
    inside = _visible(entries[0])
    wraps = any(entry.is_dir() for entry in inside) or any(entry.suffix.lower() in SUFFIXES for entry in inside)
    groups = any(child.is_dir() for entry in inside if entry.is_dir() for child in _visible(entry))
    alone = wraps and not groups and len(inside) == 1
    return entries[0] if wraps and not alone else folder


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not is_system(entry.name))


# Tables


@dataclass(frozen=True, kw_only=True)
class _Labels:
    """A table, and the split that its name or folder says, or ""."""

    table: Table
    folder: Parts
    split: str


def _read_one_table(path: Path, reading: Reading) -> Source:
    if not reading.tables:
        raise DataError(f"{printable(str(path))} is a table, which --no-tables leaves out; needed one of both")
    folder = reading.pictures or path.parent
    whole = read_tree(_picture_folder(folder), keep_masks=True)
    name = printable(path.name)
    table = read_table(path, name, Pictures(whole.files), asked=reading.columns)
    beside = [
        note for note in whole.notes if not note.folders and note.path.suffix.lower() in (".csv", ".tsv", ".jsonl")
    ]
    others = [printable(note.name) for note in beside if note.name != path.name]
    remarks = (f"not read: {_listed(others)} beside it; to read several tables, give their folder",) if others else ()
    source = _from_tables([_Labels(table=table, folder=(), split="")], whole, name, reading, remarks)
    n_unlisted = sum(row.reason is Reason.UNLISTED for row in source.left_out)
    if n_unlisted:
        remark = f"{n_unlisted:,} other pictures lie in {printable(str(folder))}, which no row names"
        source = replace(source, remarks=(*source.remarks, remark))
    return replace(source, left_out=())  # the source is the table, and not the folder that it lies in


def _picture_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise DataError(
            f"--images-in is {printable(str(folder))}, which is no folder; needed the folder of the pictures"
        )
    return folder


def _tables_of(notes: Sequence[FoundFile], tree: Tree, reading: Reading) -> tuple[list[_Labels], tuple[str, ...]]:
    """Those of `notes` that are tables of labels, and what to say of the others. Raises DataError for a doubt."""
    pictures = Pictures(
        read_tree(_picture_folder(reading.pictures), keep_masks=True).files if reading.pictures else tree.files
    )
    understood: list[_Labels] = []
    errors: list[tuple[FoundFile, DataError]] = []
    opaque: list[FoundFile] = []
    for note in notes:
        suffix = note.path.suffix.lower()
        if suffix in SUFFIXES:
            try:
                table = read_table(note.path, printable(note.id), pictures, folder=note.folders, asked=reading.columns)
                said = note.folders[0] if note.folders else note.name[: -len(suffix)]
                understood.append(_Labels(table=table, folder=note.folders, split=said if split_of(said) else ""))
            except DataError as error:
                if suffix != ".txt":
                    errors.append((note, error))
        elif suffix in _OPAQUE:
            opaque.append(note)
    labelled = [labels for labels in understood if labels.table.columns.class_name]
    lists = [labels for labels in understood if labels not in labelled]
    broken = [error for _, error in errors if not isinstance(error, UnknownColumnsError) or reading.columns]
    if broken or (errors and not labelled):
        raise (broken or [error for _, error in errors])[0]
    if not labelled and (naming := next((note for note in opaque if _may_hold_labels(note, tree)), None)):
        raise DataError(
            f"{printable(naming.id)} may hold labels, and is not read; needed a CSV with a row for each picture; "
            "next: save it as one, or leave it out with --no-tables"
        )
    remarks = [f"not read: {printable(note.id)} names no pictures" for note, _ in errors]
    if labelled:
        _check_splits(labelled)
        _check_share(labelled, pictures, tree, reading)
        remarks += [f"not read: {labels.table.name} gives no class" for labels in lists]
        return labelled, tuple(remarks)
    if lists and all(labels.split or labels.table.columns.split for labels in lists):
        return lists, tuple(remarks)
    return [], (*remarks, *(f"not read: {labels.table.name} gives no class and no split" for labels in lists))


def _may_hold_labels(note: FoundFile, tree: Tree) -> bool:
    """Whether a file that is not read is a spreadsheet, or a text that names one of the pictures."""
    if note.path.suffix.lower() not in (".json", ".xml"):
        return True
    with note.path.open("rb") as file:
        text = file.read(_SEARCHED_BYTES)
    step = max(1, len(tree.files) // _SEARCHED_NAMES)
    return any(file.name.encode() in text for file in tree.files[::step])


def _check_share(labelled: Sequence[_Labels], pictures: Pictures, tree: Tree, reading: Reading) -> None:
    """A table of some pictures that lie in class folders may be of labels, or a remark on a few of them."""
    rows = [(row, labels.folder) for labels in labelled for row in labels.table.rows]
    named = {found.id for row, folder in rows for found in pictures.find(row.path, folder)[:1]}
    if reading.columns or 2 * len(named) >= len(tree.files):
        return
    try:
        in_folders = len({placed.class_name for placed in place(tree.files).placed}) > 1
    except DataError:
        return
    if in_folders:
        raise DataError(
            f"{' and '.join(labels.table.name for labels in labelled)} names {len(named):,} of {len(tree.files):,} "
            "pictures, which lie in class folders; next: leave it out with --no-tables, or say with --class-column "
            f"{printable(labelled[0].table.columns.class_name)} that it is meant"
        )


def _check_splits(labelled: Sequence[_Labels]) -> None:
    """Several tables have to be splits, each another: else which of them is true is not known."""
    if len(labelled) < 2:
        return
    splits = [split_of(labels.split) for labels in labelled]
    if None in splits or (
        len(set(splits)) < len(splits) and len({labels.folder for labels in labelled}) < len(labelled)
    ):
        names = [labels.table.name for labels in labelled]
        raise DataError(
            f"found {len(names)} tables of labels, {_listed(names)}, which are not named as one split each; needed one "
            "table, or tables such as train.csv, val.csv, test.csv; next: give the table itself as the source"
        )


def _from_tables(tables: Sequence[_Labels], tree: Tree, name: str, reading: Reading, remarks: Sequence[str]) -> Source:
    """The files that rows name, with the class of the row, or of the folder where the table gives none."""
    root = read_tree(reading.pictures, keep_masks=True) if reading.pictures else tree
    pictures = Pictures(root.files)
    as_splits = len(tables) > 1 or not tables[0].table.columns.class_name or bool(tables[0].folder)
    of_folder = {} if all(labels.table.columns.class_name for labels in tables) else _classes_of_folders(root)
    files: dict[str, SourceFile] = {}
    first_row: dict[str, str] = {}
    given: dict[str, str] = {}
    refused: list[Refused] = []
    n_repeated = 0
    for labels in tables:
        for row in labels.table.rows:
            found = _one_picture(pictures, row, labels.folder)
            if found is None:
                reason = "leads outside" if ".." in row.path.replace("\\", "/").split("/") else "no such file"
                refused.append(Refused(source=printable(row.path), reason=reason))
                continue
            class_name = unicodedata.normalize("NFC", row.class_name) or of_folder.get(found.id, "")
            if not class_name:
                refused.append(Refused(source=printable(found.id), reason="its row names no class"))
                continue
            file = SourceFile(id=found.id, class_name=class_name, group=_nfc(row.group), path=found.path)
            known = files.setdefault(file.id, file)
            if known != file:
                raise DataError(
                    f"{row.where}: {printable(file.id)!r} is of class {printable(class_name)!r}, and of "
                    f"{printable(known.class_name)!r} in {first_row[file.id]}; needed one class for each picture"
                )
            n_repeated += known is not file
            first_row.setdefault(file.id, row.where)
            split = row.split or (labels.split if as_splits else "")
            if split and not reading.draw_splits:
                add_given(given, class_name, split, where=row.where)
    if n_repeated:
        remarks = (*remarks, f"{n_repeated:,} rows repeat another, and count once")
    unused = list(dict.fromkeys(column for labels in tables for column in labels.table.unused))
    if unused:
        remarks = (*remarks, f"columns not used: {_listed(unused)}")
    named = files.keys() | {row.source for row in refused}
    return Source(
        name=name,
        words=f"a picture for each row of {' and '.join(str(labels.table) for labels in tables)}",
        files=tuple(sorted(files.values(), key=lambda file: file.id)),
        given_splits=given,
        split_words="tables" if given else "",
        remarks=tuple(remarks),
        refused=tuple(refused),
        left_out=(
            *(row for row in root.left_out if row.source not in {labels.table.name for labels in tables}),
            *(
                LeftOut(source=printable(file.id), reason=Reason.UNLISTED)
                for file in root.files
                if printable(file.id) not in named
            ),
            *(LeftOut(source=row.source, reason=Reason.UNLISTED) for row in root.refused),
        ),
    )


def _classes_of_folders(tree: Tree) -> dict[str, str]:
    """Class of each file that lies in a class folder, for tables that only list files."""
    return {placed.file.id: placed.class_name for placed in place(tree.files).placed}


def _one_picture(pictures: Pictures, row: Row, folder: Parts) -> FoundFile | None:
    found = pictures.find(row.path, folder)
    if len(found) > 1:
        raise DataError(
            f"{row.where}: {printable(row.path)!r} may be {_listed([file.id for file in found])}; needed one picture; "
            "next: give the folder of the pictures with --images-in, or paths in the table"
        )
    return found[0] if found else None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name) for name in names[:_SHOWN])
    return f"{shown}, ..." if len(names) > _SHOWN else shown


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _folded(name: str) -> str:
    return _nfc(_nfc(name).casefold())
