"""Intervals of means over episodes.

Shapes: E episodes of a setting.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Float = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    mean: float
    half_width: float


def mean_interval(values: Float) -> Interval:
    """95% Student-t interval of the mean over episodes.

    It covers the sampling of episodes, not that of classes: episodes share the same items.
    """
    n = len(values)
    error = float(values.std(ddof=1)) / n**0.5
    return Interval(mean=float(values.mean()), half_width=t_quantile_95(n - 1) * error)


def paired_difference(ours: Mapping[str, Float], theirs: Mapping[str, Float]) -> Interval:
    """95% interval of the mean difference of accuracies (E,) by setting, on the same episodes.

    Each setting has the same weight whatever its number of episodes. The variance of the mean is the sum of the
    settings' own, and the degrees of freedom those of the smallest setting, which is never too few.
    """
    differences = [ours[setting] - theirs[setting] for setting in ours]
    mean = float(np.mean([difference.mean() for difference in differences]))
    variance = sum(float(difference.var(ddof=1)) / len(difference) for difference in differences)
    freedom = min(len(difference) for difference in differences) - 1
    half_width = t_quantile_95(freedom) * variance**0.5 / len(differences)
    return Interval(mean=mean, half_width=half_width)


def t_quantile_95(freedom: int) -> float:
    """Half-width of the two-sided 95% interval of Student's t, in standard errors."""
    return float(stdtrit(freedom, 0.975))
