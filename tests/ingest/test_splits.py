from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from kshot.data.packed import SPLITS, Splits
from kshot.errors import DataError
from kshot.ingest.splits import SeededSplits, assign_splits, read_splits, split_of


def classes(count: int, groups: int = 1) -> dict[str, str]:
    return {f"class{number:03d}": f"group{number % groups}" for number in range(count)}


def test_fractions_count_classes() -> None:
    splits = assign_splits(classes(100), given={}, plan=SeededSplits())
    assert [len(splits.of(split)) for split in SPLITS] == [64, 16, 20]


@settings(deadline=None)
@given(count=st.integers(3, 60), groups=st.integers(3, 12), by=st.sampled_from(["class", "group"]), seed=st.integers(0))
def test_every_class_is_in_exactly_one_split_and_no_split_is_empty(count: int, groups: int, by: str, seed: int) -> None:
    class_groups = classes(count, groups=min(groups, count))
    splits = assign_splits(class_groups, given={}, plan=SeededSplits(by=by, seed=seed))
    listed = [name for split in SPLITS for name in splits.of(split)]
    assert sorted(listed) == sorted(class_groups)
    assert all(splits.of(split) for split in SPLITS)
    if by == "group":
        homes = {split: {class_groups[name] for name in splits.of(split)} for split in SPLITS}
        assert not homes["meta_train"] & homes["meta_test"]
        assert not homes["meta_train"] & homes["meta_val"]
        assert not homes["meta_val"] & homes["meta_test"]


def test_the_seed_and_not_the_order_of_classes_decides() -> None:
    forward = classes(30)
    backward = dict(reversed(forward.items()))
    assert assign_splits(forward, given={}, plan=SeededSplits()) == assign_splits(
        backward, given={}, plan=SeededSplits()
    )
    other = assign_splits(forward, given={}, plan=SeededSplits(seed=2))
    assert other != assign_splits(forward, given={}, plan=SeededSplits())


def test_too_few_classes_or_groups_are_refused_by_number() -> None:
    with pytest.raises(DataError, match="found 2 classes; needed at least 3"):
        assign_splits(classes(2), given={}, plan=SeededSplits())
    with pytest.raises(DataError, match="found 2 groups; needed at least 3"):
        assign_splits(classes(10, groups=2), given={}, plan=SeededSplits(by="group"))


def test_fractions_must_sum_to_one() -> None:
    with pytest.raises(ValidationError, match=r"sum to 1\.16; needed 1"):
        SeededSplits(meta_train=0.8)


def test_given_splits_are_taken_as_they_are() -> None:
    given_splits = {"class000": "meta_test", "class001": "meta_train"}
    assert assign_splits(classes(2), given=given_splits, plan=SeededSplits()) == Splits(
        meta_train=("class001",), meta_test=("class000",)
    )


def test_a_part_of_the_training_classes_is_held_back_where_none_are_given_to_select_models_on() -> None:
    given = {f"class{number:03d}": "meta_test" if number < 5 else "meta_train" for number in range(25)}
    splits = assign_splits(classes(25), given=given, plan=SeededSplits(seed=3))
    assert splits.meta_test == tuple(f"class{number:03d}" for number in range(5))
    assert len(splits.meta_val) == 4 and len(splits.meta_train) == 16
    assert splits == assign_splits(dict(reversed(classes(25).items())), given=given, plan=SeededSplits(seed=3))
    assert splits != assign_splits(classes(25), given=given, plan=SeededSplits(seed=4))


@pytest.mark.parametrize(
    ("split", "spellings"),
    [
        ("meta_train", "train Train TRAINING trn training_set trainset train2017 train_images meta-train 01_train"),
        ("meta_val", "val valid Validation dev meta_val val_data validation-set images_val"),
        ("meta_test", "test Testing testset test_images eval evaluation images_evaluation"),
        (None, "trains restrain trainval latest contest valley devil test1 a meta"),
    ],
)
def test_splits_are_known_in_any_usual_spelling(split: str | None, spellings: str) -> None:
    assert {split_of(name) for name in spellings.split()} == {split}


def test_given_splits_must_cover_a_first_ingest_and_name_known_classes() -> None:
    with pytest.raises(DataError, match="none for 2 classes .'class001', 'class002'"):
        assign_splits(classes(3), given={"class000": "meta_train"}, plan=SeededSplits())
    with pytest.raises(DataError, match="no such class; did you mean 'class001'"):
        assign_splits(classes(3), given={"clas001": "meta_train"}, plan=SeededSplits())


def test_an_append_keeps_old_splits_and_puts_new_classes_into_meta_train_unless_given() -> None:
    before = Splits(meta_train=("class000",), meta_val=("class001",), meta_test=("class002",))
    splits = assign_splits(classes(5), given={"class004": "meta_test"}, plan=SeededSplits(), before=before)
    assert splits == Splits(
        meta_train=("class000", "class003"), meta_val=("class001",), meta_test=("class002", "class004")
    )


def test_an_append_cannot_move_a_class_to_another_split() -> None:
    before = Splits(meta_train=("class000",), meta_val=("class001",), meta_test=("class002",))
    with pytest.raises(DataError, match="class 'class000' would leave meta_train for meta_test"):
        assign_splits(classes(3), given={"class000": "meta_test"}, plan=SeededSplits(), before=before)


def test_a_split_file_may_use_short_names_and_a_header(tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    path.write_text("class,split\na,train\n'b, c',meta_val\n\"d,e\",test\n".replace("'", '"'), encoding="utf-8")
    assert read_splits(path) == {"a": "meta_train", "b, c": "meta_val", "d,e": "meta_test"}


def test_a_split_file_names_classes_in_any_unicode_form(tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    path.write_text("Ko\u0308ln,train\n", encoding="utf-8")
    assert read_splits(path) == {"K\u00f6ln": "meta_train"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,practice\n", "line 1: found split 'practice'; needed one of meta_train"),
        ("a,train\na,test\n", "line 2: class 'a' is in meta_train and in meta_test"),
        ("a,train,x\n", "line 1: found 3 columns"),
    ],
)
def test_a_wrong_split_file_is_refused_by_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "splits.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_splits(path)


def test_a_split_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as a CSV of class,split"):
        read_splits(path)


def test_a_new_class_goes_with_its_group_where_the_group_is_whole() -> None:
    before = Splits(meta_train=("a1", "c1"), meta_val=("c2",), meta_test=("b1",))
    groups = {"a1": "a", "b1": "b", "c1": "c", "c2": "c", "a2": "a", "b2": "b", "c3": "c", "d1": "d"}
    splits = assign_splits(groups, given={}, plan=SeededSplits(), before=before)
    assert splits.by_class() == {
        "a1": "meta_train",
        "c1": "meta_train",
        "c2": "meta_val",
        "b1": "meta_test",
        "a2": "meta_train",
        "b2": "meta_test",
        "c3": "meta_train",
        "d1": "meta_train",
    }


def test_new_classes_of_a_known_dataset_are_drawn_where_that_is_asked_for() -> None:
    before = Splits(meta_train=("class000",), meta_val=("class001",), meta_test=("class002",))
    splits = assign_splits(classes(11), given={}, plan=SeededSplits(), before=before, draw=True)
    assert all(len(splits.of(split)) > 1 for split in SPLITS)
    assert "class000" in splits.meta_train


def test_a_new_class_goes_with_its_group_where_a_curation_has_moved_that() -> None:
    before = Splits(meta_train=("p/a", "p/b"), meta_val=("q/a",), meta_test=("r/a",))
    groups = {name: name[0] for name in ("p/a", "p/b", "q/a", "r/a", "p/new")}
    moved = {"p/a": "meta_test", "p/b": "meta_test"}
    assert "p/new" in assign_splits(groups, given={}, plan=SeededSplits(), before=before, curated=moved).meta_test
