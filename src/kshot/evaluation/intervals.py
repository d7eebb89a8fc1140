"""Intervals of means over episodes."""

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


def t_quantile_95(freedom: int) -> float:
    """Half-width of the two-sided 95% interval of Student's t, in standard errors."""
    return float(stdtrit(freedom, 0.975))
