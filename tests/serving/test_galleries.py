"""Galleries on disk and in a bucket of fsspec: what is kept, under which names, and what a cut-off change leaves."""

import json
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kshot.errors import DataError
from kshot.serving.files import Files, FolderFiles, open_files
from kshot.serving.galleries import GalleryStore, UnknownNameError, plain_class_name
from tests.serving.small_service import GREY, picture


@pytest.fixture(params=["folder", "bucket"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return FolderFiles(tmp_path) if request.param == "folder" else open_files(f"memory://{uuid4().hex}/galleries")


@pytest.fixture
def store(files: Files) -> GalleryStore:
    found = GalleryStore(files)
    found.create("parts")
    return found


def test_examples_are_found_again_in_the_order_of_class_and_id(store: GalleryStore) -> None:
    pictures = [picture(1, number) for number in range(3)]
    added = store.add("parts", "scratch", pictures, GREY)
    store.add("parts", "dent", [picture(2)], GREY)
    contents = store.contents("parts")
    assert list(contents.classes) == ["dent", "scratch"]
    assert sorted(added) == list(contents.of("scratch"))
    assert store.read("parts", added) == pictures


def test_the_same_picture_again_changes_nothing(store: GalleryStore) -> None:
    first = store.add("parts", "dent", [picture(2)], GREY)
    assert store.add("parts", "dent", [picture(2)], GREY) == first
    assert len(store.contents("parts").examples) == 1


def test_every_change_gives_another_revision(store: GalleryStore) -> None:
    seen = {store.revision("parts")}
    (example,) = store.add("parts", "dent", [picture(2)], GREY)
    seen.add(store.revision("parts"))
    store.rename_class("parts", "dent", "bump")
    seen.add(store.revision("parts"))
    store.remove("parts", store.contents("parts").of("bump"))
    seen.add(store.revision("parts"))
    assert len(seen) == 4 and example.class_name == "dent"


def test_one_picture_that_cannot_be_read_keeps_all_of_its_request_out(store: GalleryStore) -> None:
    with pytest.raises(DataError, match=r"example 2 of 3: not a PNG"):
        store.add("parts", "dent", [picture(1), b"nonsense", picture(2)], GREY)
    assert store.contents("parts").examples == ()


def test_what_is_not_there_is_said(store: GalleryStore) -> None:
    store.add("parts", "dent", [picture(2)], GREY)
    with pytest.raises(UnknownNameError, match=r"no gallery 'others'; found: 'parts'"):
        store.contents("others")
    with pytest.raises(UnknownNameError, match=r"no class 'bump'; found: 'dent'"):
        store.rename_class("parts", "bump", "dent")
    with pytest.raises(UnknownNameError, match=r"no example 'x' in the class 'dent'"):
        store.contents("parts").example("dent", "x")


def test_a_class_is_not_renamed_onto_another(store: GalleryStore) -> None:
    for number, name in enumerate(("dent", "bump")):
        store.add("parts", name, [picture(number)], GREY)
    with pytest.raises(DataError, match=r"found the class 'bump' in parts already"):
        store.rename_class("parts", "dent", "bump")
    assert list(store.contents("parts").classes) == ["bump", "dent"]


def test_a_renaming_that_was_cut_off_is_finished_by_whoever_looks_next(files: Files, store: GalleryStore) -> None:
    store.add("parts", "dent", [picture(2, n) for n in range(3)], GREY)
    first, *_ = store.contents("parts").of("dent")
    files.write("parts/renaming.json", json.dumps({"before": "dent", "after": "bump"}).encode())
    files.write(f"parts/classes/bump/{first.id}.png", store.read("parts", [first])[0])  # and then the process ended
    assert {name: len(examples) for name, examples in store.contents("parts").classes.items()} == {"bump": 3}
    assert not files.exists("parts/renaming.json")


def test_a_deletion_that_was_cut_off_leaves_nothing_to_the_next_gallery_of_the_name(
    files: Files, store: GalleryStore
) -> None:
    store.add("parts", "dent", [picture(2)], GREY)
    files.remove("parts/gallery.json")  # and then the process ended
    assert store.names() == []
    assert store.create("parts")
    assert store.contents("parts").examples == ()


def test_a_deleted_gallery_is_gone(store: GalleryStore) -> None:
    store.add("parts", "dent", [picture(2)], GREY)
    store.delete("parts")
    assert store.names() == []
    with pytest.raises(UnknownNameError):
        store.revision("parts")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "x" * 65, "ünd", "-x"])
def test_a_gallery_name_stands_in_an_address(store: GalleryStore, name: str) -> None:
    with pytest.raises(DataError, match="gallery name"):
        store.create(name)


@pytest.mark.parametrize("name", ["", " ", "a/b", "..\\x", "a\nb", "a\u202eb", "x" * 101, " a", "\ud800"])
def test_a_class_name_can_be_seen(name: str) -> None:
    with pytest.raises(DataError):
        plain_class_name(name)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=1, max_size=60))
def test_any_name_that_is_taken_is_found_again_and_stays_in_its_gallery(tmp_path: Path, name: str) -> None:
    try:
        plain = plain_class_name(name)
    except DataError:
        return
    folder = tmp_path / uuid4().hex
    store = GalleryStore(FolderFiles(folder))
    store.create("parts")
    store.add("parts", name, [picture(1)], GREY)
    assert list(store.contents("parts").classes) == [plain]
    (kept,) = folder.rglob("*.png")
    assert kept.parent.parent == folder / "parts" / "classes"


@pytest.mark.parametrize("name", ["..", ".", "con", "%2e%2e", "a%b", "日本語", "<script>", "C:", "né"])
def test_names_that_trick_others_are_plain_names_here(store: GalleryStore, name: str) -> None:
    store.add("parts", name, [picture(1)], GREY)
    assert list(store.contents("parts").classes) == [plain_class_name(name)]


def test_files_that_were_not_finished_are_not_there(tmp_path: Path) -> None:
    files = FolderFiles(tmp_path)
    files.write("a/b", b"1")
    (tmp_path / "a" / ".c.unfinished").write_bytes(b"half")
    assert files.below("a") == ["b"]
