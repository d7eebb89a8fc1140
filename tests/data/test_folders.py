import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from kshot.data.folders import LeftOut, Refused, check_class_folders, read_tree
from kshot.data.names import Reason
from kshot.errors import DataError

LATIN = os.fsdecode(b"caf\xe9")


def fill(folder: Path, *names: str) -> Path:
    """Files that hold anything: what a file may hold is not looked at."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


def ids(folder: Path, *, keep_masks: bool = False) -> list[str]:
    return [file.id for file in read_tree(folder, keep_masks=keep_masks).files]


def left_out(folder: Path) -> dict[str, Reason]:
    return {row.source: row.reason for row in read_tree(folder).left_out}


def test_files_are_found_at_every_level_in_order_of_name(tmp_path: Path) -> None:
    names = ["a/1.png", "a/2.png", "b/c/1.png", "b/c/d/e/1.png", "loose.png"]
    fill(tmp_path, *reversed(names))
    tree = read_tree(tmp_path)
    assert [file.id for file in tree.files] == names
    assert [file.folders for file in tree.files][:2] == [("a",), ("a",)]
    assert (tree.left_out, tree.refused, tree.empty) == ((), (), ())


def test_leavings_of_systems_are_left_out_wherever_they_lie(tmp_path: Path) -> None:
    leavings = ["Thumbs.db", "desktop.ini", ".DS_Store", "._1.png", "Icon\r", ".hidden/1.png", "@eaDir/1.png/x.jpg"]
    folders = ["__MACOSX/a/._1.png", "$RECYCLE.BIN/$R1.png", "System Volume Information/x.png", "lost+found/#1.png"]
    fill(tmp_path, "a/1.png", *leavings, *folders, *(f"a/{name}" for name in leavings))
    assert ids(tmp_path) == ["a/1.png"]
    assert left_out(tmp_path) == dict.fromkeys(
        [*leavings, *folders, *(f"a/{name}" for name in leavings)], Reason.SYSTEM
    )


def test_a_class_in_which_only_leavings_lie_is_empty_and_a_folder_of_leavings_is_none(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.png", "b/Thumbs.db", "c/.hidden/1.png", "__MACOSX/a/._1.png", "@eaDir/x.jpg")
    (tmp_path / "d" / "e").mkdir(parents=True)
    assert read_tree(tmp_path).empty == (("b",), ("c",), ("d",), ("d", "e"))


def test_annotations_beside_pictures_are_left_out_and_may_be_tables(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.png", "a/1.json", "a/1.xml", "labels.csv", "README", "LICENSE.md", "a/more.zip", "a/clip.mp4")
    tree = read_tree(tmp_path)
    assert [file.id for file in tree.files] == ["a/1.png"]
    assert [file.id for file in tree.notes] == ["LICENSE.md", "README", "a/1.json", "a/1.xml", "labels.csv"]
    assert left_out(tmp_path) == dict.fromkeys((file.id for file in tree.notes), Reason.NOTE) | {
        "a/more.zip": Reason.ARCHIVE,
        "a/clip.mp4": Reason.VIDEO,
    }


def test_masks_are_left_out_unless_they_are_asked_for(tmp_path: Path) -> None:
    names = ["a/1.png", "a/1_mask.png", "b/1.jpg", "b/1.png", "b/2.jpg", "b/2.png"]
    fill(tmp_path, *names)
    assert ids(tmp_path) == ["a/1.png", "b/1.jpg", "b/2.jpg"]
    assert set(left_out(tmp_path).values()) == {Reason.MASK}
    assert ids(tmp_path, keep_masks=True) == names


def test_a_folder_of_masks_beside_one_of_pictures_or_splits_is_left_out(tmp_path: Path) -> None:
    fill(tmp_path, "bottle/train/good/1.png", "bottle/test/broken/1.png", "bottle/ground_truth/broken/1_mask.png")
    fill(tmp_path, "images/a/1.png", "masks/a/1.png")
    assert ids(tmp_path) == ["bottle/test/broken/1.png", "bottle/train/good/1.png", "images/a/1.png"]
    assert len(ids(tmp_path, keep_masks=True)) == 5


def test_a_class_may_be_called_mask(tmp_path: Path) -> None:
    fill(tmp_path, "mask/1.png", "no_mask/1.png")
    assert ids(tmp_path) == ["mask/1.png", "no_mask/1.png"]


def picture(path: Path, mode: str = "RGB", side: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (side, side)).save(path)


@pytest.mark.parametrize("mode", ["1", "L", "P"])
@pytest.mark.parametrize("name", ["1.png", "1_label.png", "1_seg.png"])
def test_a_picture_of_one_channel_in_the_size_of_its_jpeg_is_a_mask(tmp_path: Path, name: str, mode: str) -> None:
    picture(tmp_path / "a" / "1.jpg")
    picture(tmp_path / "a" / name, mode)
    assert left_out(tmp_path) == {f"a/{name}": Reason.MASK}


@pytest.mark.parametrize(("name", "mode", "side"), [("1.tif", "I;16", 8), ("1.png", "RGB", 8), ("1.png", "L", 16)])
def test_an_original_beside_its_jpeg_preview_is_a_picture(tmp_path: Path, name: str, mode: str, side: int) -> None:
    picture(tmp_path / "a" / "1.jpg")
    picture(tmp_path / "a" / name, mode, side)
    assert ids(tmp_path) == ["a/1.jpg", f"a/{name}"]


def test_a_picture_of_a_label_is_a_picture(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "front.png")
    picture(tmp_path / "a" / "front_label.png")
    assert len(ids(tmp_path)) == 2


def test_a_class_may_be_called_labels_or_masks(tmp_path: Path) -> None:
    for name in ("photos", "labels", "drawings", "maps"):
        picture(tmp_path / name / "1.png")
    fill(tmp_path, "masks/carnival.png")
    assert len(ids(tmp_path)) == 5


def test_folders_that_mirror_pictures_hold_masks_or_annotations(tmp_path: Path) -> None:
    fill(tmp_path, "yolo/images/train/1.jpg", "yolo/labels/train/1.txt", "yolo/labels/classes.txt")
    picture(tmp_path / "voc" / "JPEGImages" / "2007_1.jpg")
    picture(tmp_path / "voc" / "SegmentationClass" / "2007_1.png", "P")
    picture(tmp_path / "seg" / "images" / "1.png")
    picture(tmp_path / "seg" / "labels" / "1.png", "L")
    assert ids(tmp_path) == ["seg/images/1.png", "voc/JPEGImages/2007_1.jpg", "yolo/images/train/1.jpg"]
    assert read_tree(tmp_path).empty == ()


def test_folders_linked_to_one_another_are_read_once_each(tmp_path: Path) -> None:
    names = "abcdefg"
    for name in names:
        fill(tmp_path, f"{name}/1.png")
        for other in names.replace(name, ""):
            (tmp_path / name / other).symlink_to(f"../{other}")
    tree = read_tree(tmp_path)
    assert [file.id for file in tree.files] == [f"{name}/1.png" for name in names]
    assert {row.reason for row in tree.refused} == {"a link to a folder that is read already"}


def test_a_link_to_a_file_or_folder_is_that_file_or_folder(tmp_path: Path) -> None:
    fill(tmp_path / "else", "1.png", "more/2.png")
    fill(tmp_path / "data", "a/0.png")
    (tmp_path / "data" / "a" / "1.png").symlink_to("../../else/1.png")
    (tmp_path / "data" / "b").symlink_to("../else/more")
    assert ids(tmp_path / "data") == ["a/0.png", "a/1.png", "b/2.png"]
    os.symlink("data", tmp_path / "all")
    assert ids(tmp_path / "all") == ["a/0.png", "a/1.png", "b/2.png"]


def test_links_that_lead_nowhere_and_pipes_are_refused_one_by_one(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "a" / "gone.png").symlink_to("/nonexistent")
    (tmp_path / "a" / "self.png").symlink_to("self.png")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "other").symlink_to("../b")
    (tmp_path / "b" / "other").symlink_to("../a")
    (tmp_path / "gone").symlink_to("/nonexistent")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    tree = read_tree(tmp_path)
    assert [file.id for file in tree.files] == ["a/1.png", "b/1.png"]
    assert {row.source: row.reason for row in tree.refused} == {
        "a/gone.png": "a link to nothing",
        "a/other": "a link to a folder that is read already",
        "a/pipe.png": "not a plain file",
        "a/self.png": "a link in a circle",
        "a/up": "a link to a folder that it lies in",
        "b/other": "a link to a folder that is read already",
        "gone": "a link to nothing",
    }


def test_names_that_are_not_utf8_are_refused_and_the_others_are_taken(tmp_path: Path) -> None:
    fill(tmp_path, "a/1.png", f"a/{LATIN}.png", f"{LATIN}/1.png", f"{LATIN}/b/2.png", f"{LATIN}.png", f"{LATIN}.txt")
    (tmp_path / f"{LATIN} empty").mkdir()
    tree = read_tree(tmp_path)
    assert [file.id for file in tree.files] == ["a/1.png"]
    assert [row.source for row in tree.refused] == [
        r"a/caf\udce9.png",
        r"caf\udce9 empty",
        r"caf\udce9.png",
        r"caf\udce9/1.png",
        r"caf\udce9/b/2.png",
    ]
    assert all("not UTF-8; rename it" in row.reason for row in tree.refused)
    assert tree.left_out == (LeftOut(source=r"caf\udce9.txt", reason=Reason.NOTE),)
    assert (tree.notes, tree.empty) == ((), ())


def test_the_folder_itself_may_have_any_name(tmp_path: Path) -> None:
    assert ids(fill(tmp_path / LATIN / "\x1b[31m", "a/1.png")) == ["a/1.png"]


def test_names_are_brought_to_one_unicode_form(tmp_path: Path) -> None:
    fill(tmp_path, "e\u0301/e\u0301.png", "\u00e9/2.png")
    assert ids(tmp_path) == ["\u00e9/2.png", "\u00e9/\u00e9.png"]
    fill(tmp_path, "\u00e9/\u00e9.png")
    with pytest.raises(DataError, match=r"'é/é\.png' occurs twice, in two Unicode forms; .*; next: rename one"):
        read_tree(tmp_path)


def test_a_folder_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rights do not hold for root, who may run the tests: the refusal of the system is played."""
    fill(tmp_path, "a/1.png", "b/1.png", ".hidden/1.png")
    scandir = os.scandir

    def guarded(path: Path) -> "Iterator[os.DirEntry[str]]":
        if Path(path).name in ("b", ".hidden", "closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    tree = read_tree(tmp_path)
    assert [file.id for file in tree.files] == ["a/1.png"]
    assert tree.refused == (Refused(source="b", reason="cannot be read: Permission denied"),)
    assert tree.left_out == (LeftOut(source=".hidden", reason=Reason.SYSTEM),)
    with pytest.raises(DataError, match=r"closed cannot be read: Permission denied; needed a folder"):
        read_tree(tmp_path / "closed")


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "file")
    for name in ("file", "nothing"):
        with pytest.raises(DataError, match=rf"{name} cannot be read: .*; needed a folder"):
            read_tree(tmp_path / name)


PART = st.text(
    st.one_of(st.characters(exclude_characters="/\0", codec="utf-8"), st.sampled_from("\udce9\udcff")),
    min_size=1,
    max_size=12,
).filter(lambda name: name not in (".", "..") and len(os.fsencode(name)) < 200)


@given(st.lists(st.tuples(PART, PART), max_size=6, unique=True))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_file_of_any_name_is_taken_left_out_or_refused_once(
    tmp_path_factory: pytest.TempPathFactory, names: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    forms = {unicodedata.normalize("NFC", "/".join(parts)) for parts in names}
    if len(forms) < len(names):
        return  # refused as a whole, which has its own test
    for parts in names:
        fill(folder, "/".join(parts))
    tree = read_tree(folder)
    told = [*(file.id for file in tree.files), *(row.source for row in (*tree.left_out, *tree.refused))]
    assert sorted(told) == sorted(form.encode("utf-8", "backslashreplace").decode() for form in forms)
    assert all(file.path.read_text() == "x" for file in tree.files)
    for file in tree.files:
        file.id.encode()


@pytest.mark.parametrize(
    "folders", [[("a",), ("b",)], [("g", "a"), ("g", "b"), ("h", "a")], [("a",), ("g", "b")], [(), ("a",)], []]
)
def test_classes_lie_side_by_side_or_in_groups(folders: list[tuple[str, ...]]) -> None:
    check_class_folders(folders)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            [("a", "b", "c"), ("a", "c")],
            r"'a/b/c' is a folder 3 levels down that holds pictures; needed .*; next: move",
        ),
        (
            [("a", "b", "c"), ("a", "b", "d")],
            r"the class folders lie 3 levels down, in 'a/b' alone; .*; next: give that",
        ),
        (
            [("a",), ("a", "extra")],
            r"'a' holds pictures, and so does the folder 'a/extra' in it; needed .*; next: move",
        ),
        ([("\x1b[31m", "b", "c"), ("a",)], r"'\\x1b\[31m/b/c' is a folder"),
    ],
)
def test_classes_in_classes_and_deeper_folders_are_refused(folders: list[tuple[str, ...]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_class_folders(folders)
