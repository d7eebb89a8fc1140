import statistics

import pytest

from kshot.evaluation.over_seeds import over_seeds


def result(accuracy: float, setting: str = "5w1s", mode: str = "non-transductive") -> dict[str, object]:
    return {"setting": setting, "title": setting, "mode": mode, "accuracy": accuracy}


def test_mean_and_deviation_run_over_the_first_seed_and_the_others() -> None:
    rows = over_seeds(
        1,
        [result(0.5), result(0.7, "5w5s")],
        {7: [result(0.9, "5w5s"), result(0.6)], 8: [result(0.7), result(0.8, "5w5s")]},
    )
    assert [row["seeds"] for row in rows] == [[1, 7, 8]] * 2
    assert [row["mean"] for row in rows] == pytest.approx([0.6, 0.8])
    assert rows[0]["std"] == pytest.approx(statistics.stdev([0.5, 0.6, 0.7]))


def test_one_training_has_no_spread() -> None:
    assert over_seeds(1, [result(0.5)], {}) == []
