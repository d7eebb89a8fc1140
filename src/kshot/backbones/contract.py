"""What a learner may ask of a backbone.

Shapes: B images of one episode (its support, its query or both), R reference images, C,H,W, D features, T episodes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    """Images to features. `n_reference` says whose statistics normalise the batch:

    None      the population statistics set by `calibrate`: every image is treated alone;
    R         the first R images of the batch, applied to all of it (R = B is the usual batch mode).
    """

    n_features: int

    @abstractmethod
    def forward(self, images: Tensor, n_reference: int | None) -> Tensor:
        """(B, C, H, W) float -> (B, D), float32 or wider also under autocast."""


@runtime_checkable
class EpisodeWise(Protocol):
    """A backbone that runs several episodes, each under weights of its own, in one pass."""

    def forward_each(self, weights: Mapping[str, Tensor], images: Tensor, n_reference: int) -> Tensor:
        """(T, B, D) of images (T, B, C, H, W); weights: (T, *shape) for each parameter by its name."""
        ...


class Flatten(nn.Module):
    """The backbone that does nothing: items (B, ...) -> (B, D). Pixels, or features made before."""

    def forward(self, items: Tensor, n_reference: int | None) -> Tensor:
        return items.flatten(1)
