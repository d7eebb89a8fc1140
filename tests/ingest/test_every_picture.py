"""Every picture of a source is an item of the class that the source says, or is listed with a reason."""

import csv
import io
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kshot.errors import DataError
from kshot.ingest.source import Reading, Source
from kshot.ingest.sources import open_source

SPLITS = (("train", "val", "test"), ("Training", "valid", "Testing"), ("meta_train", "meta_val", "meta_test"))
LEAVINGS = ("Thumbs.db", ".DS_Store", "desktop.ini", "notes.txt", "boxes.xml", "README", "more.zip", "clip.mp4")
NAMES = st.text("abkxyz0123456789 äßжあ-_.'()", min_size=1, max_size=8).filter(
    lambda name: name.strip(" .") == name and not name.startswith("-")
)
CLASSES = st.lists(NAMES, min_size=2, max_size=6, unique_by=str.casefold)

ALLOWED = (
    "no column of",  # a table of something else
    "named as splits",
    "named as a split",
    "is a folder",  # too deep
    "the class folders lie",
    "holds pictures, and so does the folder",
    "needed one split per class",
    "and in no class folder",
)

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


def read(path: Path, reading: Reading | None = None) -> Source:
    with open_source(path, reading) as source:
        return source


def attempt(path: Path) -> Source | str:
    """What is read, or why it is not."""
    try:
        return read(path)
    except DataError as refusal:
        return str(refusal)


def accounted(source: Source) -> tuple[dict[str, str], set[str]]:
    """Class of every item, and the names of all other files that are listed."""
    listed = [row.source for row in (*source.refused, *source.left_out)]
    assert len(set(listed)) == len(listed)
    assert all(row.reason for row in (*source.refused, *source.left_out))
    return {file.id: file.class_name for file in source.files}, set(listed)


@st.composite
def class_trees(draw: st.DrawFn) -> tuple[dict[str, str], dict[str, str], set[str]]:
    """A tree of class folders: class of each picture, split of each class, and the names of other files."""
    classes = draw(CLASSES)
    splits = draw(st.sampled_from(SPLITS))
    layout = draw(st.sampled_from(("class", "group", "split", "split/group", "group/split", "wrapped split")))
    inner = "images/" * draw(st.booleans())
    class_of_picture, split_of_class, others = {}, {}, set()
    for number, name in enumerate(classes):
        split = splits[number % 3]
        group = f"group {number % 2}"
        folders = {
            "class": f"{name}",
            "group": f"{group}/{name}",
            "split": f"{split}/{name}",
            "split/group": f"{split}/{group}/{name}",
            "group/split": f"{group}/{split}/{name}",
            "wrapped split": f"everything/{split}/{name}",
        }[layout]
        class_name = f"{group}/{name}" if "group" in layout else name
        for picture in range(draw(st.integers(1, 3))):
            class_of_picture[f"{folders}/{inner}{picture}.png"] = class_name
        if "split" in layout:
            split_of_class[class_name] = f"meta_{('train', 'val', 'test')[number % 3]}"
        others |= {f"{folders}/{inner}{leaving}" for leaving in draw(st.sets(st.sampled_from(LEAVINGS), max_size=2))}
    return class_of_picture, split_of_class, others


@few
@given(class_trees())
def test_a_tree_of_class_folders_gives_every_picture_its_class_and_split(
    tree: tuple[dict[str, str], dict[str, str], set[str]],
) -> None:
    class_of_picture, split_of_class, others = tree
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "source"
        for name in (*class_of_picture, *others):
            write(root / name)
        source = read(root)
        assert accounted(source) == (class_of_picture, others)
        assert source.given_splits == split_of_class

        for archive in (_zipped(root), _tarred(root)):
            packed = read(archive)
            classes, listed = accounted(packed)
            assert sorted(classes.values()) == sorted(class_of_picture.values())
            assert (len(listed), packed.given_splits) == (len(others), split_of_class)


def _zipped(root: Path) -> Path:
    return Path(shutil.make_archive(str(root.parent / "packed"), "zip", root.parent, root.name))


def _tarred(root: Path) -> Path:
    path = root.parent / "packed.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(root, root.name)
    return path


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A table and what lies beside it: class of each picture with a row, split of each class, pictures without a row,
    rows without a picture."""

    class_of_picture: dict[str, str]
    split_of_class: dict[str, str]
    unlisted: set[str]
    missing: set[str]
    text: str


@st.composite
def tables(draw: st.DrawFn) -> Drawn:
    """With headers in many words, in any order, quoted or not, beside columns of something else."""
    classes = draw(CLASSES)
    folders = draw(st.sampled_from((("",), ("images/",), ("day 1/left/", "day 1/right/"))))
    stems = draw(st.lists(st.from_regex(r"[a-z]{2,5}_[0-9]{2}", fullmatch=True), min_size=8, max_size=16, unique=True))
    with_folder = len(folders) > 1 or draw(st.booleans())  # of two folders that hold pictures of one name
    pictures = [f"{folder}{stem}.jpg" for stem in stems for folder in folders]
    listed, unlisted, missing = pictures[:-4], pictures[-4:-2], pictures[-2:]
    class_of_picture = {picture: draw(st.sampled_from(classes)) for picture in listed}
    splits = dict(zip(classes, cycle(("train", "Validation", "test")), strict=False)) if draw(st.booleans()) else {}
    suffix = draw(st.booleans())

    def called(picture: str) -> str:
        name = picture if with_folder else picture.rpartition("/")[2]
        return name if suffix else name.removesuffix(".jpg")

    path, label = draw(st.sampled_from((("path", "class"), ("File Name", "Label"), ("id", "category"))))
    columns = {path: called, label: lambda picture: class_of_picture.get(picture, classes[0])}
    columns |= {"split": lambda picture: splits[columns[label](picture)]} if splits else {}
    columns |= {"width": lambda picture: "640", "remark": lambda picture: f"seen on {picture}, by day"}
    order = draw(st.permutations(list(columns)))
    text = io.StringIO()
    writer = csv.writer(
        text,
        delimiter=draw(st.sampled_from(",;\t|")),
        quoting=draw(st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))),
        lineterminator=draw(st.sampled_from(("\n", "\r\n"))),
    )
    writer.writerow(order)
    writer.writerows([columns[column](picture) for column in order] for picture in (*listed, *missing))
    used = {*class_of_picture.values()}
    return Drawn(
        class_of_picture=class_of_picture,
        split_of_class={
            name: f"meta_{split.lower()[:5].replace('valid', 'val')}" for name, split in splits.items() if name in used
        },
        unlisted=set(unlisted),
        missing={called(picture) for picture in missing},
        text=text.getvalue(),
    )


@few
@given(tables())
def test_a_table_gives_every_picture_of_a_row_its_class_and_lists_the_others(drawn: Drawn) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "source"
        for picture in (*drawn.class_of_picture, *drawn.unlisted):
            write(root / picture)
        (root / "labels.csv").write_text(drawn.text, encoding="utf-8", newline="")
        alone = read(root / "labels.csv")
        assert accounted(alone) == (drawn.class_of_picture, drawn.missing)
        assert drawn.split_of_class.items() <= alone.given_splits.items()
        whole = attempt(root)
        if isinstance(whole, str):  # the folders are classes too, and say otherwise
            assert "other classes than the folders" in whole
            assert len({picture.rpartition("/")[0] for picture in drawn.class_of_picture}) > 1
        else:
            assert accounted(whole) == (drawn.class_of_picture, drawn.unlisted | drawn.missing)


@few
@given(
    st.dictionaries(
        st.lists(st.sampled_from(("a", "B", "train", "test", "images", "masks", "c d")), max_size=4).map("/".join),
        st.lists(
            st.sampled_from(("1.png", "1.jpg", "1_mask.png", "2.tif", "x.csv", ".x", "a.json")), min_size=1, unique=True
        ),
        min_size=1,
        max_size=6,
    )
)
def test_any_tree_is_refused_or_every_file_of_it_is_accounted_for(tree: dict[str, list[str]]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "source"
        for folder, names in tree.items():
            for name in names:
                write(root / folder / name)
        there = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
        source = attempt(root)
        if isinstance(source, str):
            assert any(reason in source for reason in ALLOWED), source
            assert not tree.keys() <= {"a", "B", "c d"} or any("x.csv" in names for names in tree.values())
            return
        items, listed = accounted(source)
        folders = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_dir()}
        assert items.keys() | (listed - folders) == there
        assert not items.keys() & listed
