"""Which episodes two models were scored on, and what the gate reads from an evaluation's files."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kshot.data.packed import PackedDataset
from kshot.errors import StageError
from kshot.evaluation.intervals import Interval
from kshot.evaluation.scorecard import Lead, episodes_id, read_scorecard
from tests.tiny_dataset import TinyDataset, noise, tiny_dataset

POOLS = {"2w1s": "21" * 32}


def id_of(dataset: TinyDataset, folder: Path) -> str:
    dataset.write(folder)
    return episodes_id(PackedDataset.open(folder), POOLS)


def test_same_pools_over_other_images_are_other_episodes(tmp_path: Path) -> None:
    other = tiny_dataset()
    [row, *_] = other.rows("test/c0")
    other.pixels[row] = noise(1, seed=999)[0]
    assert id_of(tiny_dataset(), tmp_path / "one") == id_of(tiny_dataset(), tmp_path / "same")
    assert id_of(tiny_dataset(), tmp_path / "again") != id_of(other, tmp_path / "other")


def test_new_training_classes_leave_the_held_out_episodes_as_they_are(tmp_path: Path) -> None:
    grown = tiny_dataset()
    grown.append(noise(5, seed=999), "train/new", version=2)
    grown.splits["meta_train"].append("train/new")
    assert id_of(tiny_dataset(), tmp_path / "one") == id_of(grown, tmp_path / "grown")


def write_evaluation(
    folder: Path, modes: tuple[str, ...] = ("transductive", "non-transductive"), **more: float
) -> None:
    """Two episodes in each mode, right in 0.5 and 0.9 where they count; classes of two groups."""
    found = {"baselines": {"pixels": {"accuracy": 0.2}}, "calibration_error": 0.03} | more
    results = [{"setting": "5w1s", "mode": mode, "accuracy": 0.7} | found for mode in modes]
    (folder / "metrics.json").write_text(json.dumps({"results": results, "episodes_id": "e" * 64}))
    episodes = [
        {"setting": "5w1s", "mode": mode, "episode": episode, "accuracy": accuracy}
        for mode, accuracies in zip(modes, ((1.0, 1.0), (0.5, 0.9)), strict=False)
        for episode, accuracy in enumerate(accuracies)
    ]
    pd.DataFrame(episodes).to_parquet(folder / "episodes.parquet")
    classes = [
        {"setting": "5w1s", "mode": modes[-1], "class": c, "group": group, "queries": queries, "accuracy": right}
        for c, group, queries, right in (("a", "one", 30, 1.0), ("b", "one", 10, 0.6), ("c", "two", 5, 0.2))
    ]
    pd.DataFrame(classes).to_parquet(folder / "per_class.parquet")


def test_a_scorecard_holds_what_is_served(tmp_path: Path) -> None:
    write_evaluation(tmp_path)
    card = read_scorecard(tmp_path, "a" * 64)
    np.testing.assert_array_equal(card.accuracy["5w1s"], [0.5, 0.9])
    assert card.group_accuracy == pytest.approx({"one": 0.9, "two": 0.2})
    assert card.baselines == {"pixels": {"5w1s": 0.2}}
    assert card.calibration_error == 0.03
    assert (card.episodes, card.weights_sha256) == ("e" * 64, "a" * 64)


def test_a_scorecard_from_before_settings_had_names_is_read(tmp_path: Path) -> None:
    write_evaluation(tmp_path)
    for name in ("episodes.parquet", "per_class.parquet"):
        table = pd.read_parquet(tmp_path / name).drop(columns="setting")
        table.assign(n_way=5, k_shot=1).to_parquet(tmp_path / name)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for result in metrics["results"]:
        del result["setting"]
        result |= {"n_way": 5, "k_shot": 1}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    card = read_scorecard(tmp_path, "a" * 64)
    np.testing.assert_array_equal(card.accuracy["5w1s"], [0.5, 0.9])
    assert card.group_accuracy == pytest.approx({"one": 0.9, "two": 0.2})


def test_scores_that_are_not_served_do_not_count(tmp_path: Path) -> None:
    write_evaluation(tmp_path, modes=("transductive",))
    with pytest.raises(StageError, match="has no non-transductive result"):
        read_scorecard(tmp_path, "a" * 64)


def test_the_calibration_error_is_that_of_the_probabilities_that_are_served(tmp_path: Path) -> None:
    write_evaluation(tmp_path, tempered_calibration_error=0.01)
    assert read_scorecard(tmp_path, "w").calibration_error == 0.01


@pytest.mark.parametrize(
    ("mean", "of_a_head", "of_another"),
    [
        (0.02, ("ridge is ahead of the best other head", False), ("ridge is ahead of the best head", False)),
        (-0.002, ("there is no difference: -0.20", False), ("there is no difference: -0.20", True)),
        (-0.02, ("the best other head .* is ahead of ridge by 2.00 ± 1.00", True), ("is ahead of ridge by 2.00", True)),
    ],
)
def test_a_head_must_not_be_behind_the_others_and_any_other_model_must_be_ahead(
    mean: float, of_a_head: tuple[str, bool], of_another: tuple[str, bool]
) -> None:
    for is_head, (words, is_behind) in ((True, of_a_head), (False, of_another)):
        lead = Lead(over="pretrained, lda", difference=Interval(mean=mean, half_width=0.01), is_head=is_head)
        assert re.search(words, lead.words("ridge")) and lead.is_behind == is_behind


def test_alternatives_to_a_head_are_no_baselines_that_the_gate_reads(tmp_path: Path) -> None:
    write_evaluation(tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for result in metrics["results"]:
        result["baselines"]["pretrained, lda"] = {"accuracy": 0.99}
    best = {"best": "pretrained, lda", "difference": -0.2, "ci95": 0.1}
    more: dict[str, list[str]]
    for more, names in (({}, ["pixels", "pretrained, lda"]), ({"alternatives": ["pretrained, lda"]}, ["pixels"])):
        (tmp_path / "metrics.json").write_text(json.dumps(metrics | {"pretrained": best | more}))
        card = read_scorecard(tmp_path, "a" * 64)
        assert list(card.baselines) == names
        assert card.pretrained and card.pretrained.is_head == bool(more)
