"""Whether an item is of none of the classes: how high a score of what a learner says of it has to be.

Probabilities do not tell: they say which of the given classes is the likeliest, and sum to 1 for a picture of
anything. Logits and distances keep how well the likeliest fits.

Shapes: ... any dimensions, Q query items, S support items, N way, D features.
"""

import math
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor
from torch.nn import functional as F

from kshot.settings import STRICT

ScoreName = Literal["max_probability", "max_logit", "nearest", "nearest_direction"]

BASELINE: ScoreName = "max_probability"
SCORES: tuple[ScoreName, ...] = ("max_logit", "nearest", "nearest_direction")


@settings(frozen=True, kw_only=True, config=STRICT)
class UnknownRule:
    """An item whose `score` is below a threshold is of none of the classes.

    `thresholds` (shots, threshold), by shots: each keeps `recall` of the items of known classes, on the episodes that
    it was chosen on. With more examples of a class the nearest of them is nearer, so they differ.
    """

    score: ScoreName
    thresholds: Annotated[tuple[tuple[int, float], ...], Field(min_length=1)]
    recall: float = 0.95

    def threshold(self, shots: float) -> float:
        """For classes of so many examples on average: on a line between those of the nearest shots, by their logarithm.

        Below the fewest shots that it was chosen for, and above the most, it is that of these.
        """
        at, values = zip(*self.thresholds, strict=True)
        return float(np.interp(math.log(shots), np.log(at), values))


def known_score(name: ScoreName, logits: Tensor, support: Tensor, query: Tensor) -> Tensor:
    """How well queries fit one of the classes (..., Q): higher is better known.

    Of logits (..., Q, N), which are divided by their temperature, and of features (..., S, D) and (..., Q, D).

    max_probability     the probability of the likeliest class: Hendrycks and Gimpel, "A Baseline for Detecting
                        Misclassified and Out-of-Distribution Examples in Neural Networks", 2017
    max_logit           its logit: Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World Settings",
                        2022
    nearest             minus the distance to the nearest support item: Sun et al., "Out-of-Distribution Detection with
                        Deep Nearest Neighbors", 2022, with one neighbour
    nearest_direction   the same between features of length 1, as there
    """
    match name:
        case "max_probability":
            return logits.softmax(-1).amax(-1)
        case "max_logit":
            return logits.amax(-1)
        case "nearest":
            return -distances(support, query).amin(-1)
        case "nearest_direction":
            return -distances(F.normalize(support, dim=-1), F.normalize(query, dim=-1)).amin(-1)


def distances(support: Tensor, query: Tensor) -> Tensor:
    """(..., Q, S), Euclidean, by differences and not by products: an item is at distance 0 of itself."""
    return torch.cdist(query, support, compute_mode="donot_use_mm_for_euclid_dist")
