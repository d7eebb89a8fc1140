"""Edits as functions of what is stored, without files."""

import numpy as np
import pytest
from pydantic import TypeAdapter

from kshot.data.edits import (
    Curation,
    DropClasses,
    DropItems,
    Edit,
    Erase,
    ItemList,
    MergeClasses,
    MinImages,
    MoveSplit,
    Relabel,
    Undo,
    applied,
    in_force,
)


def stored(*class_of: str) -> Curation:
    """Items of classes "a", "b" (meta_train) and "c" (meta_test), named "0", "1", ..."""
    return Curation(
        classes=("a", "b", "c"),
        groups=("g", "h", "h"),
        splits=(("meta_train",), ("meta_train",), ("meta_test",)),
        class_of=np.array(["abc".index(name) for name in class_of], dtype=np.int64),
        active=np.ones(len(class_of), dtype=np.bool_),
    )


def rows_of(items: ItemList) -> tuple[np.ndarray, list[str]]:
    return np.array([int(name) for name in items.ids], dtype=np.int64), list(items.classes)


def after(edits: list[Edit], class_of: str = "aabbcc") -> dict[str, str]:
    """Class and split of every item in use, by its name."""
    state = applied(stored(*class_of), edits, rows_of)
    return {
        str(n): f"{state.classes[state.class_of[n]]} {' '.join(state.splits[state.class_of[n]])}"
        for n in np.flatnonzero(state.active).tolist()
    }


A, B, C = "a meta_train", "b meta_train", "c meta_test"


@pytest.mark.parametrize(
    ("edits", "left"),
    [
        ([], {"0": A, "1": A, "2": B, "3": B, "4": C, "5": C}),
        ([DropItems(items=ItemList(ids=("0", "4")))], {"1": A, "2": B, "3": B, "5": C}),
        ([DropClasses(classes=("b", "unknown"))], {"0": A, "1": A, "4": C, "5": C}),
        ([Relabel(items=ItemList(ids=("0",), classes=("c",)))], {"0": C, "1": A, "2": B, "3": B, "4": C, "5": C}),
        (
            [MoveSplit(classes=("b",), to="meta_val")],
            {"0": A, "1": A, "2": "b meta_val", "3": "b meta_val", "4": C, "5": C},
        ),
        (
            [MergeClasses(classes=("a", "b"), into="d", split="meta_train")],
            {**dict.fromkeys("0123", "d meta_train"), "4": C, "5": C},
        ),
        ([MergeClasses(classes=("a",), into="b", split="meta_train")], {**dict.fromkeys("0123", B), "4": C, "5": C}),
        ([DropItems(items=ItemList(ids=("0",))), MinImages(n=2)], {"2": B, "3": B, "4": C, "5": C}),
        ([MinImages(n=2), DropItems(items=ItemList(ids=("0",)))], {"1": A, "2": B, "3": B, "4": C, "5": C}),
        ([DropClasses(classes=("a",)), Undo(number=1)], {"0": A, "1": A, "2": B, "3": B, "4": C, "5": C}),
        ([DropClasses(classes=("a",)), Undo(number=1), Undo(number=2)], {"2": B, "3": B, "4": C, "5": C}),
        ([Erase(n_items=3)], {"0": A, "1": A, "2": B, "3": B, "4": C, "5": C}),
    ],
)
def test_edits_are_applied_in_their_order(edits: list[Edit], left: dict[str, str]) -> None:
    assert after(edits) == left


def test_a_rule_on_classes_holds_for_items_that_come_later() -> None:
    rules: list[Edit] = [
        DropClasses(classes=("c",)),
        MergeClasses(classes=("a",), into="b", split="meta_train"),
    ]
    assert after(rules, "abc") == {"0": B, "1": B}
    assert after(rules, "abcabc") == {"0": B, "1": B, "3": B, "4": B}


def test_a_class_that_was_too_small_comes_back_when_it_has_grown() -> None:
    assert after([MinImages(n=2)], "abbcc") == {"1": B, "2": B, "3": C, "4": C}
    assert after([MinImages(n=2)], "abbcca") == {"0": A, "1": B, "2": B, "3": C, "4": C, "5": A}


def test_a_class_whose_items_are_all_gone_is_in_no_split() -> None:
    state = applied(stored(*"abc"), [DropItems(items=ItemList(ids=("1",)))], rows_of)
    assert state.splits == (("meta_train",), (), ("meta_test",))


def test_a_new_class_takes_the_group_of_the_first_that_is_merged() -> None:
    state = applied(stored(*"abc"), [MergeClasses(classes=("b", "a"), into="d", split="meta_train")], rows_of)
    assert (state.classes[3], state.groups[3], state.splits[3]) == ("d", "h", ("meta_train",))


def test_an_undo_of_an_undo_brings_the_edit_back() -> None:
    drop = DropClasses(classes=("a",))
    assert in_force([drop, Undo(number=1)]) == (False, True)
    assert in_force([drop, Undo(number=1), Undo(number=2)]) == (True, False, True)
    assert in_force([drop, Undo(number=1), Undo(number=2), Undo(number=3)]) == (False, True, False, True)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (DropItems(items=ItemList(ids=("x/1.png",)), n_items=1), "drop of 1 item 'x/1.png'"),
        (DropItems(items=ItemList(file="edit-00000.parquet"), n_items=1200), "drop of 1,200 items"),
        (DropClasses(classes=tuple("abcde"), n_items=9), "drop of 5 classes 'a', 'b', 'c' and 2 more with 9 items"),
        (
            MinImages(n=5, n_classes=1, n_items=4),
            "least number of items per class, 5, which leaves out 1 class with 4 items",
        ),
        (Undo(number=3), "undo of edit 3"),
    ],
)
def test_an_edit_says_what_it_did_and_how_much(edit: Edit, words: str) -> None:
    assert str(edit) == words


def test_an_edit_is_read_back_as_it_was_written() -> None:
    edits: list[Edit] = [
        Relabel(items=ItemList(ids=("0",), classes=("c",)), n_items=1, reason="a typing error"),
        MoveSplit(classes=("b",), to="meta_val", n_items=2),
        Undo(number=1),
    ]
    kinds = TypeAdapter(list[Edit])
    assert kinds.validate_json(kinds.dump_json(edits)) == edits
