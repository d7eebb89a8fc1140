"""Losses of an episode, and what they are made of."""

import torch
from torch import Tensor
from torch.nn import functional as F


def full_precision(like: Tensor) -> torch.autocast:
    """Autocast off, for what follows the backbone: distances and inner steps want float32."""
    return torch.autocast(like.device.type, enabled=False)


def one_hot(labels: Tensor, n_way: int, *, like: Tensor) -> Tensor:
    """(B, S, N) of labels (B, S), in the type of `like`. On a CPU torch's own reads the labels' range first."""
    return (labels[:, :, None] == torch.arange(n_way, device=labels.device)).to(like.dtype)


def cross_entropy(logits: Tensor, query_y: Tensor) -> Tensor:
    """Mean cross-entropy of each episode (B,) from logits (B, Q, N) and labels (B, Q)."""
    losses = F.cross_entropy(logits.flatten(0, 1), query_y.flatten(), reduction="none")
    return losses.view(query_y.shape).mean(1)
