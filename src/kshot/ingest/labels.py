"""Labels that tables give: which files of a folder are tables of labels, and the source that their rows make.

A table names pictures that lie in its folder, or in the folder that the user gives. Where it gives no class, but lists
the pictures of a split, their class is that of their folder. Where tables lie in some folders of splits alone, the
pictures of the others have the classes of their folders. What is in doubt is refused, with the option that decides.
"""

import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kshot.data.folders import FoundFile, LeftOut, Parts, Refused, Tree, read_tree
from kshot.data.names import Reason
from kshot.errors import DataError, UnknownColumnsError
from kshot.ingest.layout import place
from kshot.ingest.pictures import Pictures, leads_outside
from kshot.ingest.source import Reading, Source, SourceFile
from kshot.ingest.splits import add_given, read_splits, split_of
from kshot.ingest.tables import SUFFIXES, Table, read_lines, read_table
from kshot.printing import listed, printable

_OPAQUE = frozenset({".xlsx", ".xls", ".ods", ".parquet", ".feather", ".mat"})  # that may hold labels
_SEARCHED = frozenset(
    {".json", ".ndjson", ".xml", ".yaml", ".yml", ".pkl", ".pickle", ".sqlite", ".db", ".h5", ".hdf5"}
)
_SURE_TABLES = frozenset({".csv", ".tsv", ".jsonl"})
_SEARCHED_BYTES, _SEARCHED_LINES = 64 * 2**20, 50


@dataclass(frozen=True, kw_only=True)
class Labels:
    """A table, and the split that its name or folder says, or "". `id` is its path in the source."""

    table: Table
    id: str
    folder: Parts
    split: str


def read_one_table(path: Path, reading: Reading) -> Source:
    """The source that one table is: pictures that no row names are no part of it. Raises DataError."""
    if not reading.tables:
        raise DataError(f"{printable(str(path))} is a table, which --no-tables leaves out; needed one of both")
    folder = reading.pictures or path.parent
    tree = read_tree(_picture_folder(folder), keep_masks=True)
    table = _read(path, printable(path.name), Pictures(tree.files), tree, reading)
    if not table.columns.class_name and (not tree.files or not place(tree.files).placed):
        raise DataError(
            f"{table.name} gives no class, and the pictures lie in no class folder; needed a column of classes; "
            "next: name it with --class-column"
        )
    labels = Labels(table=table, id=path.name, folder=(), split="")
    source = from_tables(Found(tables=(labels,), tree=tree), printable(path.name), reading)
    return replace(source, left_out=(), remarks=(*source.remarks, *_beside(path, folder, tree, source)))


def _read(path: Path, name: str, pictures: Pictures, tree: Tree, reading: Reading, *, folder: Parts = ()) -> Table:
    return read_table(
        path,
        name,
        pictures,
        folder=folder,
        asked=reading.columns,
        class_folders=_class_folders(tree),
        several=reading.several,
        splits_are_known=reading.draw_splits or reading.splits_are_given,
    )


def _class_folders(tree: Tree) -> frozenset[str]:
    """The names of the class folders, none where the folders have no plain meaning."""
    try:
        return frozenset(placed.class_name for placed in place(tree.files).placed)
    except DataError:
        return frozenset()


def _beside(path: Path, folder: Path, tree: Tree, source: Source) -> Iterator[str]:
    """What lies beside a table that is the source, and is not read."""
    tables = [note.name for note in tree.notes if not note.folders and note.path.suffix.lower() in _SURE_TABLES]
    others = [name for name in tables if name != path.name]
    if others:
        yield f"not read: {listed(others)} beside it; to read several tables, give their folder"
    n_unlisted = sum(row.reason is Reason.UNLISTED for row in source.left_out)
    if n_unlisted:
        yield f"{n_unlisted:,} other pictures lie in {printable(str(folder))}, which no row names"


def _picture_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise DataError(
            f"--images-in is {printable(str(folder))}, which is no folder; needed the folder of the pictures"
        )
    return folder


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the notes of a folder say of labels: tables, or splits of class folders, and what else is to be said.

    `tree` is of the folder in which the pictures lie.
    """

    tree: Tree
    tables: tuple[Labels, ...] = ()
    splits: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def labels_in(notes: Sequence[FoundFile], tree: Tree, masks: Collection[str], reading: Reading) -> Found:
    """What of `notes` are tables of labels, or lists of classes with their splits. Raises DataError for a doubt.

    `masks` are the ids of those files of `tree` that are named as masks.
    """
    if reading.pictures:
        tree = read_tree(_picture_folder(reading.pictures), keep_masks=True)
    pictures = Pictures(tree.files, masks)
    understood: list[Labels] = []
    unknown: dict[FoundFile, UnknownColumnsError] = {}
    for note in notes:
        suffix = note.path.suffix.lower()
        of_split = split_of(note.folders[0]) if note.folders else None
        folder = note.folders if of_split else ()
        if suffix in _SURE_TABLES or (suffix in SUFFIXES and _is_a_table(note, pictures, folder)):
            try:
                table = _read(note.path, printable(note.id), pictures, tree, reading, folder=folder)
                said = of_split or split_of(note.name[: -len(suffix)]) or ""
                understood.append(Labels(table=table, id=note.id, folder=folder, split=said))
            except UnknownColumnsError as error:
                unknown[note] = error
    labelled = tuple(labels for labels in understood if labels.table.columns.class_name)
    lists = tuple(labels for labels in understood if not labels.table.columns.class_name)
    if unknown and not labelled:
        if len(unknown) == 1 and not lists and (splits := _splits_of_classes(next(iter(unknown)), tree)):
            return Found(tree=tree, splits=splits)
        raise next(iter(unknown.values()))
    listing = bool(lists) and all(labels.split or labels.table.columns.split for labels in lists)
    if not (labelled or listing) and (naming := next((note for note in notes if _may_hold_labels(note, tree)), None)):
        raise DataError(
            f"{printable(naming.id)} may hold labels, and is not read; needed a CSV with a row for each picture; "
            "next: save it as one, or leave it out with --no-tables"
        )
    remarks = tuple(f"not read: {printable(note.id)} names no pictures" for note in unknown)
    if labelled:
        _check_splits(labelled)
        _check_folders(labelled, [file for file in tree.files if file.id not in masks], reading)
        unlabelled = (f"not read: {labels.table.name} gives no class" for labels in lists)
        return Found(tree=tree, tables=labelled, remarks=(*remarks, *unlabelled))
    if listing:
        return Found(tree=tree, tables=lists, remarks=remarks)
    unused = (f"not read: {labels.table.name} gives no class and no split" for labels in lists)
    return Found(tree=tree, remarks=(*remarks, *unused))


def _is_a_table(note: FoundFile, pictures: Pictures, folder: Parts) -> bool:
    """Whether at least half of the first lines of a text name a picture: notes are texts too."""
    try:
        lines = [cells for _, cells in read_lines(note.path, note.name)[:_SEARCHED_LINES]]
    except DataError:
        return False
    naming = [pictures.naming(cells, folder) is not None for cells in lines]
    return bool(naming) and 2 * sum(naming) >= len(naming)


def _splits_of_classes(note: FoundFile, tree: Tree) -> dict[str, str]:
    """The split of each class that a list of class,split gives, of classes that are folders here; else nothing."""
    try:
        splits = read_splits(note.path)
        classes = {placed.class_name for placed in place(tree.files).placed}
    except DataError:
        return {}
    return splits if splits and splits.keys() <= classes else {}


def _may_hold_labels(note: FoundFile, tree: Tree) -> bool:
    """Whether a file that is not read is a spreadsheet, or names one of the pictures somewhere."""
    suffix = note.path.suffix.lower()
    if suffix not in _SEARCHED:
        return suffix in _OPAQUE
    with note.path.open("rb") as file:
        content = file.read(_SEARCHED_BYTES)
    step = max(1, len(tree.files) // _SEARCHED_LINES)
    return any(file.name.encode() in content for file in tree.files[::step])


def _check_folders(labelled: Sequence[Labels], pictures: Sequence[FoundFile], reading: Reading) -> None:
    """Raise DataError where pictures lie in class folders, and tables of another kind than path,class say otherwise."""
    sure = all(labels.table.is_documented for labels in labelled)
    if sure or (reading.columns.class_name and not any(labels.folder for labels in labelled)):
        return
    try:
        in_splits = {labels.folder[0] for labels in labelled if labels.folder}  # the tables say nothing of others
        files = [file for file in pictures if not in_splits or file.folders[:1] in {(name,) for name in in_splits}]
        of_folder = {placed.file.id: placed.class_name for placed in place(files).placed}
    except DataError:
        return
    if len(set(of_folder.values())) < 2:
        return
    rows = [row for labels in labelled for row in labels.table.rows if row.picture is not None and row.class_name]
    pairs = {(row.class_name, of_folder.get(row.picture.id, "")): row for row in rows if row.picture}
    same = len({name for name, _ in pairs}) == len(pairs) == len({folder for _, folder in pairs})
    n_named = len({row.picture.id for row in rows if row.picture})
    if same and 2 * n_named >= len(files):
        return
    names = " and ".join(labels.table.name for labels in labelled)
    ways = (
        f"next: go by the folders with --no-tables, or by the table with --class-column "
        f"{printable(labelled[0].table.columns.class_name)}"
    )
    if not same:
        (name, folder), row = next(iter(pairs.items()))
        assert row.picture is not None, "only rows with a picture are compared"
        raise DataError(
            f"{names} says other classes than the folders: {printable(row.picture.id)!r} is {printable(name)!r} there, "
            f"and {printable(folder) or 'in no class'!r} by its folder; needed one of both; {ways}"
        )
    raise DataError(
        f"{names} names {n_named:,} of {len(files):,} pictures, which lie in class folders; needed one of both; {ways}"
    )


def _check_splits(labelled: Sequence[Labels]) -> None:
    """Several tables have to be splits, each another: else which of them is true is not known."""
    if len(labelled) < 2:
        return
    splits = [labels.split for labels in labelled]
    if "" in splits or (len(set(splits)) < len(splits) and len({labels.folder for labels in labelled}) < len(labelled)):
        names = [labels.table.name for labels in labelled]
        raise DataError(
            f"found {len(names)} tables of labels, {listed(names)}, which are not named as one split each; needed one "
            "table, or tables such as train.csv, val.csv, test.csv; next: give the table itself as the source"
        )


def from_tables(found: Found, name: str, reading: Reading) -> Source:
    """The files that rows name, with the class of the row, or of the folder where the table gives none."""
    tables, root, remarks = found.tables, found.tree, found.remarks
    lists_only = not tables[0].table.columns.class_name
    names_are_splits = len(tables) > 1 or lists_only or bool(tables[0].folder)
    of_folder = _classes_of_folders(root) if lists_only else {}
    files: dict[str, SourceFile] = {}
    first_row: dict[str, str] = {}
    given: dict[str, str] = {}
    missing: list[Refused] = []
    unlabelled: dict[str, str] = {}
    n_repeated = 0
    for labels in tables:
        for row in labels.table.rows:
            picture = row.picture
            if picture is None:
                outside = leads_outside(row.path, labels.folder)
                reason = "leads out of the source" if outside else "no such file" if row.path else "names no picture"
                missing.append(Refused(source=row.path or row.where, reason=reason))
                continue
            class_name = unicodedata.normalize("NFC", row.class_name) or of_folder.get(picture.id, "")
            if not class_name:
                unlabelled[picture.id] = row.fault
                continue
            file = SourceFile(id=picture.id, class_name=class_name, group=_nfc(row.group), path=picture.path)
            known = files.setdefault(file.id, file)
            if known != file:
                raise DataError(
                    f"{row.where}: {printable(file.id)!r} is of class {printable(class_name)!r}, and of "
                    f"{printable(known.class_name)!r} in {first_row[file.id]}; needed one class for each picture; "
                    "next: remove one of the two rows"
                )
            n_repeated += known is not file
            first_row.setdefault(file.id, row.where)
            split = row.split or (labels.split if names_are_splits else "")
            if split and not reading.draw_splits:
                add_given(given, class_name, split, where=row.where)
    n_repeated += sum(name in files for name in unlabelled)
    refused = [
        *missing,
        *(Refused(source=name, reason=fault) for name, fault in unlabelled.items() if name not in files),
    ]
    if n_repeated:
        said = (
            "1 row repeats another, and counts" if n_repeated == 1 else f"{n_repeated:,} rows repeat another, and count"
        )
        remarks = (*remarks, f"{said} once")
    unused = list(dict.fromkeys(column for labels in tables for column in labels.table.unused))
    if unused:
        remarks = (*remarks, f"columns not used: {listed(unused)}")
    named = files.keys() | {row.source for row in refused}
    read = {labels.id for labels in tables}
    return Source(
        name=name,
        words=f"a picture for each row of {' and '.join(str(labels.table) for labels in tables)}",
        files=tuple(sorted(files.values(), key=lambda file: file.id)),
        given_splits=given,
        split_words="tables" if given else "",
        remarks=tuple(remarks),
        refused=tuple(refused),
        left_out=(
            *(row for row in root.left_out if row.source not in read),
            *(LeftOut(source=file.id, reason=Reason.UNLISTED) for file in root.files if file.id not in named),
            *(LeftOut(source=row.source, reason=Reason.UNLISTED) for row in root.refused),
        ),
    )


def _classes_of_folders(tree: Tree) -> dict[str, str]:
    """Class of each file that lies in a class folder, for tables that only list files."""
    return {placed.file.id: placed.class_name for placed in place(tree.files).placed}


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)
