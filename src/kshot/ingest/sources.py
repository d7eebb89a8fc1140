"""What a user hands to ingest: a folder of class folders, a table of labels, or an archive of either.

Each becomes a list of files with id, class, group and split, in order of id. Every other file of the source is listed
with a reason. Tables at the top of a folder, or in folders that are named as splits, take the place of class folders
(`labels`); else the levels of folders say what is what (`layout`). The id of a file is its path in the source.
"""

import tempfile
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from kshot.data.folders import LAYOUTS, FoundFile, LeftOut, Refused, Tree, read_tree
from kshot.data.names import Reason, in_counts, is_system, stem_of
from kshot.data.packed import Quarantined
from kshot.errors import DataError
from kshot.ingest.archive import extract, is_archive
from kshot.ingest.labels import Found, from_tables, labels_in, read_one_table
from kshot.ingest.layout import Placed, place
from kshot.ingest.source import Reading, Source, SourceFile
from kshot.ingest.splits import add_given, split_of
from kshot.ingest.tables import SUFFIXES
from kshot.printing import printable

_ANNOTATION_FOLDERS = frozenset({"annotations", "annotation", "meta", "metadata", "labels", "lists", "splits"})


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
        yield read_one_table(path, reading)
    else:
        raise DataError(
            f"{shown} is a {printable(path.suffix) or 'plain'} file; "
            f"needed a folder of class folders, a table ({', '.join(SUFFIXES)}), a zip or a tar"
        )


def check_class_names(names: Iterable[str], examples: Mapping[str, str] | None = None) -> None:
    """Raise DataError for class names that differ only in case, and for control characters in one.

    `examples` has a file of a class, to show where its name comes from.
    """
    examples = examples or {}
    seen: dict[str, str] = {}
    for name in names:
        if any(unicodedata.category(letter) == "Cc" for letter in name):
            raise DataError(f"class name {name!r} has control characters; rename it")
        twin = seen.setdefault(_folded(name), name)
        if twin != name:
            found = " and ".join(
                f"{one!r}{f' ({printable(examples[one])})' if one in examples else ''}" for one in (twin, name)
            )
            raise DataError(
                f"classes {found} differ only in case or spelling of accents; needed names that are told apart; "
                "next: rename one, or give both one name"
            )


def nothing_usable(source: Source, refused: Sequence[Refused | Quarantined]) -> str:
    """Why there is nothing to pack."""
    if not refused:
        left = in_counts(row.reason for row in source.left_out)
        archive = next((row.source for row in source.left_out if row.reason is Reason.ARCHIVE), "")
        return (
            f"{source.name} holds no picture in a class folder{f', and beside them {left}' if left else ''}; "
            f"needed {LAYOUTS}" + (f"; next: unpack {printable(archive)}, or give it as the source" if archive else "")
        )
    first = refused[0]
    return f"{source.name}: none of {len(refused)} files is usable; the first is {first.source!r}: {first.reason}"


def _read_folder(folder: Path, name: str, reading: Reading) -> Source:
    tree = read_tree(folder, keep_masks=reading.keep_masks)
    stems = {stem_of(file.name) for file in tree.files}
    notes = [note for note in tree.notes if _may_be_a_table(note, stems)]
    listed: Mapping[str, str] = {}
    remarks: tuple[str, ...] = ()
    if reading.tables and notes:
        whole = read_tree(folder, keep_masks=True)  # what a table names is a picture, whatever its name looks like
        masks = {row.source for row in tree.left_out if row.reason is Reason.MASK}
        found = labels_in(notes, whole, masks, reading)
        if found.tables and reading.layout:
            raise DataError(
                f"--layout says what folders mean, but {found.tables[0].table.name} says what the pictures are; "
                "next: leave out --layout, or the tables with --no-tables"
            )
        if found.tables:
            return _with_folders_beside(found, name, reading)
        listed, remarks = found.splits, found.remarks
    if reading.columns or reading.pictures:
        raise DataError(f"columns or --images-in are given, and {name} has no table at its top; next: leave them out")
    return replace(_from_folders(tree, name, reading, listed), remarks=remarks)


def _may_be_a_table(note: FoundFile, stems: Collection[str]) -> bool:
    """Whether a note lies at the top, in a folder of a split, or is a list in a folder of annotations.

    `stems` are those of the pictures: an annotation of one picture is called as the picture is.
    """
    if len(note.folders) != 1:
        return not note.folders
    of_annotations = note.folders[0].casefold() in _ANNOTATION_FOLDERS and note.path.suffix.lower() in SUFFIXES
    return split_of(note.folders[0]) is not None or (of_annotations and stem_of(note.name) not in stems)


def _with_folders_beside(found: Found, name: str, reading: Reading) -> Source:
    """What the tables say; where each lies in a folder of a split, the folders say it of the other splits."""
    source = from_tables(found, name, reading)
    in_splits = {labels.folder[0] for labels in found.tables if labels.folder}
    beside = [file for file in found.tree.files if file.folders and file.folders[0] not in in_splits]
    if not in_splits or not all(labels.folder for labels in found.tables) or not beside:
        return source
    placement = place(beside)
    if not placement.placed:
        return source
    folders = _from_folders(replace(found.tree, files=tuple(beside), refused=(), empty=()), name, reading, {})
    given = dict(source.given_splits)
    for class_name, split in folders.given_splits.items():
        add_given(given, class_name, split, where="the folders beside the tables")
    ids = {file.id for file in beside}
    return replace(
        source,
        words=f"{source.words}, and beside them {folders.words}",
        files=tuple(sorted((*source.files, *folders.files), key=lambda file: file.id)),
        given_splits=given,
        split_words="folders" if given else "",
        refused=(*source.refused, *folders.refused),
        left_out=(
            *(row for row in source.left_out if row.source not in ids),
            *(row for row in folders.left_out if row.source in ids),
        ),
    )


def _from_folders(tree: Tree, name: str, reading: Reading, listed: Mapping[str, str]) -> Source:
    """`listed` is the split of each class in a list beside the folders."""
    placement = place(tree.files, reading.layout)
    given = {} if reading.draw_splits else dict(listed)
    seen: dict[str, str] = {}
    for placed in placement.placed:
        twin = seen.setdefault(placed.class_name, placed.group)
        assert twin == placed.group, "the name of a class holds that of its group"
        if placed.split and not reading.draw_splits:
            add_given(given, placed.class_name, placed.split, where=_where(placed))
    loose = [file for file in placement.unlabelled if not file.folders]
    unlabelled = [file for file in placement.unlabelled if file.folders]
    if unlabelled and not placement.placed:
        folders = {file.folders for file in unlabelled}
        by_layout = len(folders) > 2 and all(len(parts) == 1 for parts in folders)
        raise DataError(
            f"the pictures lie in {printable('/'.join(unlabelled[0].folders))!r}, and in no class folder; needed "
            f"{LAYOUTS}, in folders of splits or not, or a table of labels; next: "
            + (
                "put them into class folders, or say with --layout class that these folders are the classes"
                if by_layout
                else f"put each into a folder of its class, or write a table of path,class into {name}"
            )
        )
    return Source(
        name=name,
        words=f"{placement.words}{_depths(placement.words)}",
        files=tuple(
            SourceFile(id=placed.file.id, class_name=placed.class_name, group=placed.group, path=placed.file.path)
            for placed in placement.placed
        ),
        given_splits=given,
        split_words="" if not given else "list of classes" if listed else "folders",
        domain_level=reading.layout.index("domain") if "domain" in reading.layout else None,
        refused=(
            *tree.refused,
            *(Refused(source=file.id, reason=f"not in a class folder; needed {LAYOUTS}") for file in loose),
            *(
                Refused(source="/".join(parts), reason="the folder holds no picture")
                for parts in tree.empty
                if not any(other != parts and other[: len(parts)] == parts for other in tree.empty)
            ),
        ),
        left_out=(
            *tree.left_out,
            *(LeftOut(source=file.id, reason=Reason.UNLABELLED) for file in unlabelled),
        ),
    )


def _where(placed: Placed) -> str:
    return f"folder {printable('/'.join(placed.file.folders))!r}"


def _depths(words: str) -> str:
    return ", as the names of the folders say" if "split" in words else ""


def _unwrapped(folder: Path) -> Path:
    """Skip the single folder that archives tend to wrap everything in."""
    entries = _visible(folder)
    if len(entries) != 1 or not entries[0].is_dir() or split_of(entries[0].name):
        return folder
    inside = _visible(entries[0])
    wraps = any(entry.is_dir() for entry in inside) or any(entry.suffix.lower() in SUFFIXES for entry in inside)
    groups = any(child.is_dir() for entry in inside if entry.is_dir() for child in _visible(entry))
    alone = wraps and not groups and len(inside) == 1
    return entries[0] if wraps and not alone else folder


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not is_system(entry.name))


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
