"""Attention of queries over the items of a support set.

Shapes: B episodes, S support items, Q query items, N way.
"""

import torch
from torch import Tensor

from kshot.algorithms.maths.losses import one_hot


def class_log_sums(scores: Tensor, labels: Tensor, n_way: int) -> Tensor:
    """log sum exp of the scores (B, Q, S) of each class's items, (B, Q, N), with labels (B, S).

    Every class needs an item. In memory of B * Q * S numbers, whatever N is.
    """
    classes = labels[:, None].expand(scores.shape)
    largest = torch.full_like(scores[:, :, :1], -torch.inf).repeat(1, 1, n_way)
    largest = largest.scatter_reduce(2, classes, scores.detach(), "amax")
    shares = (scores - largest.gather(2, classes)).exp() @ one_hot(labels, n_way, like=scores)
    return largest + shares.log()
