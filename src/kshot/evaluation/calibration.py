"""How far a confidence can be believed.

Shapes: E episodes, N way, Q queries per class, K bins.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from kshot.algorithms.answering import normalization_modes
from kshot.algorithms.learner import Learner
from kshot.data.class_table import Int
from kshot.data.gather import Gather
from kshot.episodes.sampling import EpisodeIndices
from kshot.evaluation.scoring import episode_logits
from kshot.runtime.lines import silent_lines

Float = NDArray[np.float64]

_LOG_TEMPERATURES = (-4.0, 8.0)


@torch.no_grad()
def fit_temperature(learner: Learner[Any], indices: EpisodeIndices, gather: Gather) -> float:
    """What to divide the logits by, so that the queries of these episodes are least surprising.

    Guo et al., "On Calibration of Modern Neural Networks", 2017, section 4.2.
    """
    from scipy.optimize import minimize_scalar  # here: training calls this at its end, and needs no scipy before

    logits = torch.cat(list(episode_logits(learner, indices, gather, silent_lines()))).double()
    labels = torch.arange(indices.query.shape[1]).repeat_interleave(indices.query.shape[2])
    labels = labels.repeat(len(indices)).to(logits.device)

    def surprise(log_temperature: float) -> float:
        return float(F.cross_entropy(logits.flatten(0, 1) / math.exp(log_temperature), labels))

    return math.exp(float(minimize_scalar(surprise, bounds=_LOG_TEMPERATURES, method="bounded").x))


def fit_temperatures(learner: Learner[Any], indices: EpisodeIndices, gather: Gather) -> dict[str, float]:
    """The temperature of each normalisation mode in which the learner is scored."""
    return {mode: fit_temperature(it, indices, gather) for mode, it in normalization_modes(learner).items()}


@dataclass(frozen=True, kw_only=True)
class Bins:
    """Queries by confidence, in bins of equal width: mean confidence, fraction right and number in each (K,)."""

    confidence: Float
    accuracy: Float
    count: Int

    @property
    def expected_calibration_error(self) -> float:
        """Mean distance of confidence and accuracy, weighted by the queries in the bin; empty ones count nothing."""
        return float(np.average(np.abs(self.confidence - self.accuracy), weights=self.count))


def calibration_bins(confidence: Float, right: NDArray[np.bool_], n_bins: int = 15) -> Bins:
    """Naeini, Cooper and Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015."""
    where = np.minimum((confidence.ravel() * n_bins).astype(np.int64), n_bins - 1)
    count = np.bincount(where, minlength=n_bins)
    filled = np.maximum(count, 1)
    return Bins(
        confidence=np.bincount(where, weights=confidence.ravel(), minlength=n_bins) / filled,
        accuracy=np.bincount(where, weights=right.ravel(), minlength=n_bins) / filled,
        count=count,
    )
