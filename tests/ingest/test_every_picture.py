"""Every picture of a source is an item of the class that the source says, or is listed with a reason."""

import shutil
import tarfile
import tempfile
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

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


def read(path: Path, reading: Reading | None = None) -> Source:
    with open_source(path, reading) as source:
        return source


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


@st.composite
def tables(draw: st.DrawFn) -> tuple[dict[str, str], str, str, set[str], set[str]]:
    """Class of each picture, the name and text of a table of them, pictures without a row, rows without a picture."""
    classes = draw(CLASSES)
    folders = draw(st.sampled_from(("", "images/", "day 1/left/")))
    stems = draw(st.lists(st.from_regex(r"[a-z]{2,5}_[0-9]{2}", fullmatch=True), min_size=4, max_size=12, unique=True))
    listed, unlisted, missing = stems[:-2], stems[-2:-1], stems[-1:]
    class_of_picture = {f"{folders}{stem}.jpg": draw(st.sampled_from(classes)) for stem in listed}
    called = draw(st.sampled_from(("{folders}{stem}.jpg", "{stem}.jpg", "{stem}")))
    separator = draw(st.sampled_from(",;\t|"))
    header = draw(st.sampled_from((("path", "class"), ("File Name", "Label"), ("id", "breed"), ())))
    rows = [(called.format(folders=folders, stem=stem), class_of_picture[f"{folders}{stem}.jpg"]) for stem in listed]
    rows += [(called.format(folders=folders, stem=stem), classes[0]) for stem in missing]
    lines = [separator.join(row) for row in ([header] if header else []) + rows]
    names = {f"{folders}{stem}.jpg" for stem in unlisted}
    text = draw(st.sampled_from(("\n", "\r\n"))).join(lines)
    return class_of_picture, "labels.csv", text, names, {rows[-1][0]}


@few
@given(tables())
def test_a_table_gives_every_picture_of_a_row_its_class_and_lists_the_others(
    drawn: tuple[dict[str, str], str, str, set[str], set[str]],
) -> None:
    class_of_picture, name, text, unlisted, missing = drawn
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "source"
        for picture in (*class_of_picture, *unlisted):
            write(root / picture)
        (root / name).write_text(text, encoding="utf-8", newline="")
        assert accounted(read(root)) == (class_of_picture, unlisted | missing)
        assert accounted(read(root / name)) == (class_of_picture, missing)


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
        try:
            source = read(root)
        except DataError:
            return
        items, listed = accounted(source)
        folders = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_dir()}
        assert items.keys() | (listed - folders) == there
        assert not items.keys() & listed
