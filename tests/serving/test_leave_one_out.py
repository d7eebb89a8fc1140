"""How well a model knows a gallery, without a service: what the promotion gate asks."""

from pathlib import Path

import pytest

from kshot.serving.files import FolderFiles
from kshot.serving.galleries import GalleryStore
from kshot.serving.leave_one_out import Told, change_since, leave_one_out
from tests.serving.small_service import GREY, picture, served_model


@pytest.fixture
def store(tmp_path: Path) -> GalleryStore:
    found = GalleryStore(FolderFiles(tmp_path))
    found.create("shapes")
    for pattern in (1, 2):
        found.add("shapes", f"pattern {pattern}", [picture(pattern, number) for number in range(3)], GREY)
    found.add("shapes", "pattern 1", [picture(2, 50)], GREY)  # one that looks like the other class
    return found


def test_each_example_is_asked_of_the_others(store: GalleryStore) -> None:
    found = leave_one_out(served_model(), store, "shapes")
    wrong = [one for one in found.told if not one.right]
    assert len(found.told) == 7 and found.accuracy == pytest.approx(6 / 7)
    assert [(one.class_name, one.told) for one in wrong] == [("pattern 1", "pattern 2")]
    assert found.confused == [("pattern 1", "pattern 2", 1)]


def test_what_was_found_is_kept_until_the_gallery_changes(store: GalleryStore) -> None:
    first = leave_one_out(served_model(), store, "shapes")
    assert leave_one_out(served_model(), store, "shapes") == first
    store.add("shapes", "pattern 2", [picture(2, 3)], GREY)
    assert len(leave_one_out(served_model(), store, "shapes").told) == 8


def test_the_last_other_model_is_compared_on_the_examples_that_both_were_asked_about(store: GalleryStore) -> None:
    before = leave_one_out(served_model("models:/patterns/1"), store, "shapes")
    store.add("shapes", "pattern 2", [picture(2, 3)], GREY)
    after = leave_one_out(served_model("models:/patterns/2", seed=1), store, "shapes")
    change = change_since(store, "shapes", after)
    assert change is not None and (change.before, change.after, change.n) == ("models:/patterns/1", after.model, 7)
    assert change.accuracy_before == before.accuracy


@pytest.mark.parametrize("classes", [0, 1])
def test_a_gallery_that_cannot_be_learned_tells_nothing(tmp_path: Path, classes: int) -> None:
    store = GalleryStore(FolderFiles(tmp_path / "few"))
    store.create("few")
    if classes:
        store.add("few", "alone", [picture(1, number) for number in range(3)], GREY)
    found = leave_one_out(served_model(), store, "few")
    assert (found.told, found.accuracy, found.interval) == ((), None, None)
    assert Told(class_name="a", id="1", told="a").right
