"""Prototypes and distances."""

from torch import Tensor

from kshot.algorithms.maths.losses import one_hot


def prototypes(features: Tensor, labels: Tensor, n_way: int) -> Tensor:
    """Mean feature of each class (B, N, D) from features (B, S, D) and labels (B, S)."""
    members = one_hot(labels, n_way, like=features)
    return members.transpose(1, 2) @ features / members.sum(1)[:, :, None]


def squared_distances(queries: Tensor, centres: Tensor) -> Tensor:
    """Squared Euclidean distances (B, Q, N) from queries (B, Q, D) to centres (B, N, D)."""
    cross = queries @ centres.transpose(1, 2)
    return queries.square().sum(2)[:, :, None] - 2 * cross + centres.square().sum(2)[:, None, :]
