"""Answers as means over several classifiers.

Shapes: B episodes, Q query items, N way.
"""

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor


def log_mean_probability(logits: Sequence[Tensor]) -> Tensor:
    """Logarithm (B, Q, N) of the mean of the probabilities that each of the logits (B, Q, N) stands for."""
    return reduce(torch.logaddexp, (one.log_softmax(2) for one in logits)) - math.log(len(logits))
