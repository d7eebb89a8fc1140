"""What a learner may ask of a backbone.

Shapes: B items of one episode (its support, its query or both), R reference items, D features, T episodes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from kshot.backbones.layers.norm import RECORDING, ReferenceNorm

EMBED_BYTES = 196 * 2**20  # of activations in one pass


class Backbone(nn.Module, ABC):
    """Items to features. `n_reference` says whose statistics normalise the batch:

    None      the population statistics set by `calibrate`: every item is treated alone;
    R         the first R items of the batch, applied to all of it (R = B is the usual batch mode).
    """

    n_features: int
    map_shape: tuple[int, int, int] | None = None
    """(C, H, W) where the D features are such a map, flattened in this order; None where they are not."""
    bytes_per_item: int = 2**20
    """Memory of the largest activations that one item has at the same time; with gradients all layers are kept."""

    @abstractmethod
    def forward(self, items: Tensor, n_reference: int | None) -> Tensor:
        """(B, *item) float -> (B, D), float32 or wider also under autocast."""


@runtime_checkable
class EpisodeWise(Protocol):
    """A backbone that runs several episodes, each under weights of its own, in one pass."""

    def forward_each(self, weights: Mapping[str, Tensor], items: Tensor, n_reference: int) -> Tensor:
        """(T, B, D) of items (T, B, *item); weights: (T, *shape) for each parameter by its name."""
        ...


class Flatten(nn.Module):
    """The backbone that does nothing: items (B, ...) -> (B, D). Raw items, or features made before."""

    def forward(self, items: Tensor, n_reference: int | None) -> Tensor:
        return items.flatten(1)


def items_at_once(backbone: nn.Module, budget_bytes: int = EMBED_BYTES) -> int:
    """How many items, at least one, to embed in one pass without gradients so that activations fit the budget."""
    per_item = backbone.bytes_per_item if isinstance(backbone, Backbone) else Backbone.bytes_per_item
    return max(1, budget_bytes // per_item)


@torch.no_grad()
def calibrate(backbone: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the population statistics to the mean of those of `batches`, each (B, *item).

    Each batch is normalised by its own statistics on the way, as in training. Norms that are frozen keep theirs.
    """
    if not any(isinstance(module, ReferenceNorm) and not module.frozen for module in backbone.modules()):
        return
    with recorded_statistics(backbone) as statistics:
        for batch in batches:
            backbone(batch, len(batch))
    buffers = dict(backbone.named_buffers())
    for name, value in statistics().items():
        buffers[name].copy_(value)


@contextmanager
def recorded_statistics(backbone: nn.Module) -> Iterator[Callable[[], dict[str, Tensor]]]:
    """Record what enters each norm in this thread while the context is open.

    What it gives returns the population statistics that the batches amount to, each by the name of its buffer: the
    means over the batches. Norms that are frozen are left out, and those that no batch reached.
    """
    seen: dict[ReferenceNorm, list[tuple[Tensor, Tensor]]] = {}

    def statistics() -> dict[str, Tensor]:
        found = {}
        for name, module in backbone.named_modules():
            if isinstance(module, ReferenceNorm) and module in seen:
                means, variances = zip(*seen[module], strict=True)
                prefix = f"{name}." if name else ""
                found[f"{prefix}population_mean"] = torch.stack(means).mean(0)
                found[f"{prefix}population_var"] = torch.stack(variances).mean(0)
        return found

    token = RECORDING.set(seen)
    try:
        yield statistics
    finally:
        RECORDING.reset(token)
