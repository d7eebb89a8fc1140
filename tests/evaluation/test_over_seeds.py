import statistics
from typing import Any

import pytest

from kshot.evaluation.over_seeds import over_seeds


def metrics(seed: int, *results: tuple[str, float]) -> dict[str, Any]:
    rows = [{"setting": name, "title": name, "mode": "non-transductive", "accuracy": a} for name, a in results]
    return {"seed": seed, "results": rows}


def test_mean_and_deviation_run_over_the_first_seed_and_the_others() -> None:
    others = {7: metrics(7, ("5w5s", 0.9), ("5w1s", 0.6)), 8: metrics(8, ("5w1s", 0.7), ("5w5s", 0.8))}
    rows = over_seeds(metrics(1, ("5w1s", 0.5), ("5w5s", 0.7)), others)
    assert [row["title"] for row in rows] == ["5w1s", "5w5s"]
    assert [row["seeds"] for row in rows] == [[1, 7, 8]] * 2
    assert [row["mean"] for row in rows] == pytest.approx([0.6, 0.8])
    assert rows[0]["std"] == pytest.approx(statistics.stdev([0.5, 0.6, 0.7]))


def test_one_training_has_no_spread() -> None:
    assert over_seeds(metrics(1, ("5w1s", 0.5)), {}) == []
