"""The tests of drift: how often they alarm where nothing changed, what they find, and whether they are the papers'."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import energy_distance

from kshot.monitoring.drift import DriftTest, Sample, energy_test, find_drift, mmd_test

D = 8


def drawn(rng: np.random.Generator, n: int, shift: float = 0.0) -> Sample:
    return Sample(
        features=rng.normal(shift, 1, (n, D)),
        probability=rng.beta(8 - 6 * min(shift, 1), 2, n),
        known=rng.normal(-shift, 1, n),
    )


def plain_mmd(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Gretton et al. 2012, equation 3, by its sums."""
    both = np.concatenate([x, y])
    squared = cdist(both, both, "sqeuclidean")
    kernel = np.exp(-squared / np.median(squared[squared > 0]))
    n, m = len(x), len(y)
    xx = sum(kernel[i, j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(kernel[n + i, n + j] for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return float(xx + yy - 2 * kernel[:n, n:].mean())


@pytest.mark.parametrize("seed", range(5))
def test_the_discrepancy_is_that_of_its_paper(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(0, 1, (12, 3)), rng.normal(0.5, 1, (9, 3))
    found, _ = mmd_test(x, y, seed=0, n_permutations=10)
    assert found == pytest.approx(plain_mmd(x, y), rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_the_energy_distance_is_that_of_scipy_but_for_its_correction(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(0, 1, 12), rng.normal(1, 2, 9)
    found, _ = energy_test(x[:, None], y[:, None], seed=0, n_permutations=10)
    within = [cdist(one[:, None], one[:, None]).sum() / (len(one) * (len(one) - 1)) for one in (x, y)]
    biased = [cdist(one[:, None], one[:, None]).mean() for one in (x, y)]
    assert found == pytest.approx(energy_distance(x, y) ** 2 + sum(biased) - sum(within))


def test_at_most_one_in_twenty_windows_alarms_where_nothing_changed() -> None:
    """1,000 windows. By chance more than 65 would alarm once in 50 times if the rate were 5 %."""
    rng = np.random.default_rng(0)
    alarms = sum(find_drift(drawn(rng, 60), drawn(rng, 60), seed=seed).found for seed in range(1_000))
    assert 0 < alarms <= 65


def test_a_shift_of_a_third_of_the_spread_is_found_in_nine_of_ten_windows() -> None:
    rng = np.random.default_rng(1)
    found = sum(find_drift(drawn(rng, 200), drawn(rng, 200, 0.3), seed=seed).found for seed in range(50))
    assert found >= 45


def test_drift_in_features_alone_is_named_as_that() -> None:
    rng = np.random.default_rng(2)
    before, now = drawn(rng, 200), drawn(rng, 200)
    moved = Sample(features=now.features + 0.7, probability=now.probability, known=now.known)
    alarms = [test.name for test in find_drift(before, moved).tests if test.alarm]
    assert alarms == ["features"]


def test_the_same_samples_give_the_same_answer_and_large_ones_are_thinned() -> None:
    rng = np.random.default_rng(3)
    before, now = drawn(rng, 3_000), drawn(rng, 3_000)
    assert find_drift(before, now) == find_drift(before, now)


def test_further_tests_are_corrected_together_with_the_others() -> None:
    rng = np.random.default_rng(4)
    before, now = drawn(rng, 60), drawn(rng, 60)
    weak, strong = (
        find_drift(before, now, more=[DriftTest(name="share", statistic=1, p_value=p)]).tests[-1].alarm
        for p in (0.02, 0.009)
    )
    assert (weak, strong) == (False, True)  # of five tests the smallest p-value is held against 0.01


def test_a_shift_is_found_no_later_than_adaptive_windowing_finds_it() -> None:
    """Both look at one number at a time: the mean score moves by 0.6 of its spread after 400 answers."""
    from river.drift import ADWIN

    rng = np.random.default_rng(5)
    stream = np.concatenate([rng.normal(0, 1, 400), rng.normal(0.6, 1, 400)])
    adwin = ADWIN()
    by_adwin = next(step for step, value in enumerate(stream) if (adwin.update(value), adwin.drift_detected)[1])

    def sample(values: NDArray[np.float64]) -> Sample:
        return Sample(features=values[:, None], probability=np.full(len(values), 0.5), known=values)

    reference = sample(stream[:200])
    by_window = next(
        stop for stop in range(400, 800, 20) if find_drift(reference, sample(stream[stop - 100 : stop])).found
    )
    assert 400 < by_window <= by_adwin + 20
