import numpy as np
import pytest

from kshot.evaluation.intervals import mean_interval


def test_the_interval_is_students() -> None:
    found = mean_interval(np.array([0.0, 1.0, 1.0, 0.0]))
    assert found.mean == 0.5
    assert found.half_width == pytest.approx(3.182446 * 0.577350 / 2, rel=1e-5)  # t(0.975, 3) * sd / sqrt(4)


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = [abs(i.mean - 0.7) <= i.half_width for i in (mean_interval(rng.normal(0.7, 0.1, 30)) for _ in range(2000))]
    assert 0.935 < np.mean(hits) < 0.965
