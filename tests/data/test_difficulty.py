"""The errors of a model by class, and what becomes of them."""

import json
from hashlib import sha256
from pathlib import Path

import pytest

from kshot.data.difficulty import Difficulty, difficulty_json, read_difficulty
from kshot.errors import DataError

FOUND = Difficulty(
    dataset="toy", data_hash="ab", weights_sha256="cd", episodes="9 episodes", queries={"a": 8, "b": 18},
    errors={"a": 4, "b": 0},
)  # fmt: skip


def written(data: Path, content: bytes) -> None:
    (data / "difficulty").mkdir()
    (data / "difficulty" / "one.json").write_bytes(content)


def test_rates_are_smoothed_and_a_class_of_which_nothing_is_known_has_the_mean() -> None:
    rates = FOUND.error_rates({"a": 2, "new": 1, "b": 0}, 3)
    assert rates == pytest.approx([1 / 20, (1 / 20 + 5 / 10) / 2, 5 / 10])


def test_errors_that_know_fewer_than_half_of_the_classes_are_refused() -> None:
    with pytest.raises(
        DataError, match="9 episodes know 2 of 5 classes of meta_train; needed half of them; next: train"
    ):
        FOUND.error_rates({"a": 2, "b": 0, "x": 1, "y": 3, "z": 4}, 5)


@pytest.mark.parametrize("errors", [{"a": 4}, {"a": 9, "b": 0}], ids=["of fewer classes", "more than queries"])
def test_errors_that_do_not_fit_the_queries_are_refused(tmp_path: Path, errors: dict[str, int]) -> None:
    written(tmp_path, json.dumps(json.loads(difficulty_json(FOUND)) | {"errors": errors}).encode())
    with pytest.raises(DataError, match="need of each class as many errors as queries at most.*next: dvc checkout"):
        read_difficulty(tmp_path, "one", "toy")


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    written(tmp_path, difficulty_json(FOUND))
    assert read_difficulty(tmp_path, "one", "toy") == FOUND
    assert FOUND.sha256 == sha256((tmp_path / "difficulty" / "one.json").read_bytes()).hexdigest()


def test_what_is_missing_damaged_or_of_another_dataset_is_refused(tmp_path: Path) -> None:
    written(tmp_path, difficulty_json(FOUND))
    with pytest.raises(DataError, match="no difficulty 'two'; found: one; next: kshot difficulty two"):
        read_difficulty(tmp_path, "two", "toy")
    with pytest.raises(DataError, match="one.json is of the classes of toy; needed those of glyphs"):
        read_difficulty(tmp_path, "one", "glyphs")
    (tmp_path / "difficulty" / "one.json").write_bytes(b"{")
    with pytest.raises(DataError, match="one.json does not say how hard classes are .*next: dvc checkout"):
        read_difficulty(tmp_path, "one", "toy")
