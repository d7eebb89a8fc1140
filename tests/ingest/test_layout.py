from pathlib import Path

import pytest

from kshot.data.folders import FoundFile
from kshot.errors import DataError
from kshot.ingest.layout import Placement, place, read_layout


def found(*names: str) -> list[FoundFile]:
    return [FoundFile(parts=tuple(name.split("/")), path=Path(name)) for name in names]


def meanings(placement: Placement) -> dict[str, tuple[str, str, str]]:
    return {placed.file.id: (placed.class_name, placed.group, placed.split) for placed in placement.placed}


@pytest.mark.parametrize(
    ("names", "meaning"),
    [
        (("ant/1.png", "bee/1.png"), ("ant", "", "")),
        (("pets/ant/1.png", "pets/bee/1.png"), ("pets/ant", "pets", "")),
        (("train/ant/1.png", "test/bee/1.png"), ("ant", "", "meta_train")),
        (("Training/ant/1.png", "Testing/bee/1.png", "VALID/cow/1.png"), ("ant", "", "meta_train")),
        (("train/pets/ant/1.png", "test/pets/bee/1.png"), ("pets/ant", "pets", "meta_train")),
        (("pets/train/ant/1.png", "farm/test/cow/1.png"), ("pets/ant", "pets", "meta_train")),
        (("data/train/ant/1.png", "data/val/bee/1.png"), ("ant", "", "meta_train")),
        (("ant/train/1.png", "ant/test/2.png", "bee/train/1.png"), ("ant", "", "meta_train")),
        (("images/ant/1.png", "images/bee/1.png"), ("ant", "", "")),
        (("train/ant/images/1.png", "val/bee/images/1.png"), ("ant", "", "meta_train")),
        (("ant/1.png", "train/1.png", "bee/1.png"), ("ant", "", "")),
        (("seg_train/sea/1.png", "seg_test/ice/1.png"), ("sea", "", "meta_train")),
        (("asl_alphabet_train/a/1.png", "asl_alphabet_test/b/1.png"), ("a", "", "meta_train")),
        (("train_224/a/1.png", "val_224/b/1.png"), ("a", "", "meta_train")),
        (("training_set/training_set/a/1.png", "test_set/test_set/b/1.png"), ("a", "", "meta_train")),
        (("rail/train/1.png", "rail/ant/1.png"), ("rail/train", "rail", "")),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) and "/" in value[0] else "",
)
def test_levels_of_folders_are_split_group_and_class(names: tuple[str, ...], meaning: tuple[str, str, str]) -> None:
    assert meanings(place(found(*names)))[names[0]] == meaning


def test_a_class_that_is_called_photos_beside_another_is_a_class() -> None:
    placed = meanings(place(found("ant/photos/1.png", "ant/drawings/1.png")))
    assert {meaning[0] for meaning in placed.values()} == {"ant/photos", "ant/drawings"}


@pytest.mark.parametrize(
    "names",
    [
        ("train/ant/1.png", "val/bee/1.png", "extra/cow/1.png"),
        ("train/ant/1.png", "more/cow/1.png"),
        ("train/1.png", "test/1.png", "ant/1.png"),
        ("ant/train/1.png", "ant/test/1.png", "ant/other/1.png"),
    ],
)
def test_a_level_that_may_be_splits_or_not_is_refused_with_a_way_on(names: tuple[str, ...]) -> None:
    with pytest.raises(
        DataError,
        match=r"named as (a split|splits), and .* beside (it|them) is not; next: name all .*--layout (group/)?class",
    ):
        place(found(*names))
    layout = read_layout("group/class" if len(names[0].split("/")) == 3 else "class")
    assert not place(found(*names), layout).unlabelled


@pytest.mark.parametrize(
    ("train", "test"),
    [("base", "novel"), ("images_background", "images_evaluation"), ("seen", "unseen"), ("train", "novel")],
)
def test_words_of_the_field_are_splits_beside_other_splits(train: str, test: str) -> None:
    names = (f"{train}/ant/1.png", "val/bee/1.png", f"{test}/cow/1.png")
    for layout in ("", "split/class"):
        placed = meanings(place(found(*names), read_layout(layout) if layout else ()))
        assert placed == {
            names[0]: ("ant", "", "meta_train"),
            names[1]: ("bee", "", "meta_val"),
            names[2]: ("cow", "", "meta_test"),
        }


def test_a_domain_is_no_part_of_the_name_of_a_class() -> None:
    placed = meanings(place(found("clipart/ant/1.png", "photo/ant/1.png"), read_layout("domain/class")))
    assert [meaning[0] for meaning in placed.values()] == ["ant", "ant"]


def test_words_of_the_field_alone_are_classes() -> None:
    placed = meanings(place(found("base/1.png", "background/1.png", "cow/1.png")))
    assert [meaning[0] for meaning in placed.values()] == ["base", "background", "cow"]


def test_a_layout_that_is_given_is_used_whatever_the_names_are() -> None:
    placed = meanings(place(found("train/ant/1.png", "test/bee/1.png"), read_layout("group/class")))
    assert placed == {"train/ant/1.png": ("train/ant", "train", ""), "test/bee/1.png": ("test/bee", "test", "")}


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("group/class", "'ant' is 1 folders deep; --layout group/class needs 2"),
        ("split/class", "'ant' is 1 folders deep"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(layout: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        place(found("ant/1.png"), read_layout(layout))


def test_a_folder_that_is_given_as_a_split_has_to_be_called_one() -> None:
    with pytest.raises(DataError, match="'monday' is no name of a split; needed one such as train, val or test"):
        place(found("monday/ant/1.png"), read_layout("split/class"))


@pytest.mark.parametrize("text", ["", "split", "class/class", "split/kind", "group"])
def test_a_layout_is_split_group_and_class_each_at_most_once(text: str) -> None:
    with pytest.raises(DataError, match="needed split, domain, group and class with / between them"):
        read_layout(text)


def test_pictures_beside_class_folders_have_no_class() -> None:
    placement = place(found("train/ant/1.png", "test/1.png", "test/2.png"))
    assert [file.id for file in placement.unlabelled] == ["test/1.png", "test/2.png"]
    assert placement.words == "split/class/picture"
