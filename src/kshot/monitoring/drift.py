"""Whether two samples of answers are from one distribution: of features, and of what was answered.

Shapes: n and m rows of two samples, D features, P permutations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import ks_2samp
from torch import Tensor

from kshot.seeding import generator

Float = NDArray[np.float64]

N_PERMUTATIONS = 500
_MOST_ROWS = 500  # of a sample: the matrix of all pairs is kept


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Answers: features (n, D), the probability (n,) of the class that was told, and how well it is known (n,)."""

    features: Float
    probability: Float
    known: Float

    def __len__(self) -> int:
        return len(self.probability)

    def of(self, rows: NDArray[np.int64]) -> "Sample":
        return Sample(features=self.features[rows], probability=self.probability[rows], known=self.known[rows])


@dataclass(frozen=True, kw_only=True)
class DriftTest:
    """`p_value`: how often a difference as large comes by chance. `alarm`: after correction for the other tests."""

    name: str
    statistic: float
    p_value: float
    alarm: bool = False


@dataclass(frozen=True, kw_only=True)
class Drift:
    """All tests, of which none alarms in 1 - `level` of the cases where nothing has changed."""

    tests: tuple[DriftTest, ...]
    level: float

    @property
    def found(self) -> bool:
        return any(test.alarm for test in self.tests)


def find_drift(
    reference: Sample, window: Sample, *, more: Sequence[DriftTest] = (), level: float = 0.05, seed: int = 0
) -> Drift:
    """Four tests and `more`, corrected together.

    Holm, "A simple sequentially rejective multiple test procedure", 1979.

    features     maximum mean discrepancy, by permutation
    answers      energy distance of probability and score together, by permutation
    probability  Kolmogorov-Smirnov
    known        Kolmogorov-Smirnov
    """
    reference, window = (_at_most(sample, seed, name) for name, sample in (("r", reference), ("w", window)))
    mmd, mmd_p = mmd_test(reference.features, window.features, seed=seed)
    energy, energy_p = energy_test(_answers(reference, reference), _answers(window, reference), seed=seed)
    found = [
        DriftTest(name="features", statistic=mmd, p_value=mmd_p),
        DriftTest(name="answers", statistic=energy, p_value=energy_p),
    ]
    for name, before, now in (
        ("probability", reference.probability, window.probability),
        ("known", reference.known, window.known),
    ):
        test = ks_2samp(before, now)
        found.append(DriftTest(name=name, statistic=float(test.statistic), p_value=float(test.pvalue)))
    return Drift(tests=_corrected([*found, *more], level), level=level)


def mmd_test(x: Float, y: Float, *, seed: int, n_permutations: int = N_PERMUTATIONS) -> tuple[float, float]:
    """Squared maximum mean discrepancy of x (n, D) and y (m, D), and its p-value.

    Gretton et al., "A Kernel Two-Sample Test", 2012, lemma 6, the unbiased estimate, with a Gaussian kernel whose width
    is the median distance, and permutations of both samples together.
    """
    squared = _distances(x, y).square()
    width = squared[squared > 0].quantile(0.5) if bool((squared > 0).any()) else torch.ones(())
    kernel = (-squared / width).exp()
    kernel.fill_diagonal_(0)
    return _by_permutation(kernel, len(x), seed, n_permutations)


def energy_test(x: Float, y: Float, *, seed: int, n_permutations: int = N_PERMUTATIONS) -> tuple[float, float]:
    """Energy distance of x (n, D) and y (m, D), and its p-value.

    Székely and Rizzo, "Energy statistics: A class of statistics based on distances", 2013, section 5.
    """
    return _by_permutation(-_distances(x, y), len(x), seed, n_permutations)


def _by_permutation(similar: Tensor, n: int, seed: int, n_permutations: int) -> tuple[float, float]:
    """Mean similarity within both samples minus that between them, twice, and how often a random division has more.

    `similar` (n + m, n + m) has a diagonal that counts nothing.
    """
    total = len(similar)
    m = total - n
    draw = generator(seed, "drift", "permutations")
    divisions = np.zeros((n_permutations + 1, total))
    divisions[0, :n] = 1
    for row in divisions[1:]:
        row[draw.permutation(total)[:n]] = 1
    first = torch.from_numpy(divisions).to(similar.dtype)
    second = 1 - first
    toward_first = first @ similar
    within_first = (toward_first * first).sum(1) / (n * (n - 1))
    within_second = ((second @ similar) * second).sum(1) / (m * (m - 1))
    between = (toward_first * second).sum(1) / (n * m)
    values = within_first + within_second - 2 * between
    p_value = (1 + int((values[1:] >= values[0] - 1e-12).sum())) / (n_permutations + 1)
    return float(values[0]), p_value


def _distances(x: Float, y: Float) -> Tensor:
    both = torch.from_numpy(np.concatenate([x, y])).double()
    return torch.cdist(both, both, compute_mode="donot_use_mm_for_euclid_dist")


def _answers(sample: Sample, reference: Sample) -> Float:
    """(n, 2) probability and score, each in units of its spread in the reference."""
    columns = (
        (sample.probability, reference.probability),
        (sample.known, reference.known),
    )
    return np.stack([values / max(float(of.std()), 1e-9) for values, of in columns], axis=1)


def _corrected(tests: Sequence[DriftTest], level: float) -> tuple[DriftTest, ...]:
    """Holm's procedure: the smallest p-value against level / k, the next against level / (k - 1), until one is not."""
    order = sorted(range(len(tests)), key=lambda number: tests[number].p_value)
    alarms = set()
    for place, number in enumerate(order):
        if tests[number].p_value > level / (len(tests) - place):
            break
        alarms.add(number)
    return tuple(
        DriftTest(name=test.name, statistic=test.statistic, p_value=test.p_value, alarm=number in alarms)
        for number, test in enumerate(tests)
    )


def _at_most(sample: Sample, seed: int, name: str) -> Sample:
    if len(sample) <= _MOST_ROWS:
        return sample
    return sample.of(generator(seed, "drift", name).choice(len(sample), _MOST_ROWS, replace=False))
