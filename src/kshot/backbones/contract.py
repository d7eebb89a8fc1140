"""What a learner may ask of a backbone.

Shapes: B items of one episode (its support, its query or both), R reference items, D features, T episodes.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from typing import Annotated, Literal, Protocol, TypeVar, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn

from kshot.backbones.layers.norm import RECORDING, KeepsStatistics, Norm
from kshot.data.items import ImageKind
from kshot.data.items.contract import ItemKind
from kshot.errors import ConfigError

EMBED_BYTES = 196 * 2**20  # of activations in one pass

Weights = Annotated[str, Field(pattern=r"^([A-Za-z0-9_][A-Za-z0-9._-]*)?$", exclude_if=lambda name: not name)]
"""The name of weights under data/weights/ that a backbone starts from; "" for random ones."""
Freeze = Annotated[Literal["all"] | tuple[str, ...], Field(exclude_if=lambda layers: not layers)]
"""What of a backbone is never trained: layers by the first parts of their names."""

_DRAWS: ContextVar[torch.Generator | None] = ContextVar("draws", default=None)
_SHOWN = 12  # layers that an error names


class Backbone(nn.Module, ABC):
    """Items to features. `n_reference` says whose statistics normalise the batch:

    None      the population statistics set by `calibrate`: every item is treated alone;
    R         the first R items of the batch, applied to all of it (R = B is the usual batch mode).
    """

    n_features: int
    map_shape: tuple[int, int, int] | None = None
    """(C, H, W) where the D features are such a map, flattened in this order; None where they are not."""
    each_alone: bool = False
    """Whether the features of an item are the same whatever `n_reference` is."""
    by_support: bool = False
    """Whether an episode is to be normalised by its support set, in training and after it: that of `TaskNorm`."""
    recomputes: bool = False
    """Whether it has blocks that compute their activations again where a process wants that: `layers.recompute`."""
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
    return max(1, budget_bytes // activation_bytes(backbone, 1))


def activation_bytes(backbone: nn.Module, n_items: int) -> int:
    """Memory of the largest activations that so many items have at the same time."""
    return n_items * (backbone.bytes_per_item if isinstance(backbone, Backbone) else Backbone.bytes_per_item)


@torch.no_grad()
def calibrate(backbone: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the population statistics to the mean of those of `batches`, each (B, *item).

    Each batch is normalised by its own statistics on the way, as in training. Norms that are frozen keep theirs.
    """
    if not any(isinstance(module, KeepsStatistics) and not module.frozen for module in backbone.modules()):
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
    seen: dict[KeepsStatistics, list[dict[str, Tensor]]] = {}

    def statistics() -> dict[str, Tensor]:
        found = {}
        for name, module in backbone.named_modules():
            if isinstance(module, KeepsStatistics) and module in seen:
                prefix = f"{name}." if name else ""
                for buffer in seen[module][0]:
                    found[f"{prefix}{buffer}"] = torch.stack([batch[buffer] for batch in seen[module]]).mean(0)
        return found

    token = RECORDING.set(seen)
    try:
        yield statistics
    finally:
        RECORDING.reset(token)


BackboneT = TypeVar("BackboneT", bound=nn.Module)


def freeze(backbone: BackboneT, layers: Literal["all"] | Sequence[str]) -> BackboneT:
    """The backbone, of which these layers are not trained; their norms keep their statistics.

    A layer is named as its network names it, by the first parts of its name: "blocks.0" is all of that block.
    Raises ConfigError for one that is not there.
    """
    prefixes = [""] if layers == "all" else list(layers)
    names = {layer_name(name): parameter for name, parameter in backbone.named_parameters()}
    modules = {layer_name(name): module for name, module in backbone.named_modules()}
    for prefix in prefixes:
        if prefix and not any(_is_below(name, prefix) for name in names):
            known = list(dict.fromkeys(name.partition(".")[0] for name in names))
            raise ConfigError(
                f"backbone.freeze names {prefix!r}, and no layer is called so; needed all, or of "
                f"{', '.join(known[:_SHOWN])}"
            )
        for name, parameter in names.items():
            if _is_below(name, prefix):
                parameter.requires_grad_(False)
        for name, module in modules.items():
            if _is_below(name, prefix) and isinstance(module, KeepsStatistics):
                module.frozen = True
    return backbone


def norm_parameters(backbone: nn.Module) -> list[str]:
    """The names of the scales and shifts of its normalisation, of those that are trained."""
    return [
        f"{name}.{own}" if name else own
        for name, module in backbone.named_modules()
        if isinstance(module, Norm)
        for own, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    ]


def has_nothing_to_train(backbone: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in backbone.parameters())


@contextmanager
def drawing(key: int) -> Iterator[None]:
    """Layers with noise draw it from `key` while the context is open, and are without noise outside of it."""
    token = _DRAWS.set(torch.Generator().manual_seed(key % 2**63))
    try:
        yield
    finally:
        _DRAWS.reset(token)


def draws() -> torch.Generator | None:
    """What layers with noise draw from now; None where they are without."""
    return _DRAWS.get()


def noise_of(x: Tensor) -> Tensor | None:
    """Numbers in 0..1 of the shape of x, drawn on the CPU so that they are the same on every device; None without."""
    generator = draws()
    return None if generator is None else torch.rand(x.shape, generator=generator).to(x.device)


def image_item(backbone: str, item: ItemKind) -> ImageKind:
    """The item, which is an image; raises ConfigError where it is not."""
    if not isinstance(item, ImageKind):
        raise ConfigError(f"{backbone} got {item}; needed images; next: choose a backbone that takes them")
    return item


def nearest_name(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def layer_name(name: str) -> str:
    """The name of a layer as its own network has it: without what adopted it, behind `backbone` where it begins so."""
    return re.sub(r"^((?:(?:backbone|base)\.)*)(?:network\.)+", r"\1", name)


def _is_below(name: str, prefix: str) -> bool:
    return not prefix or name == prefix or name.startswith(f"{prefix}.")
