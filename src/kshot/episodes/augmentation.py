"""Items of a training, changed at random: the same key gives the same change, whatever stands beside the item.

An augmentation is a function of items (R, C, H, W) in 0..1 and their keys (R,) int64. So an item is changed in the same
way in every number of workers, after every resume and in every batch.

Shapes: B episodes, S support items, Q query items, R items, C channels, H = W pixels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor
from torch.nn import functional as F

from kshot.episodes.episode import EpisodeBatch, MixedLabels
from kshot.errors import ConfigError
from kshot.seeding import random_words
from kshot.settings import STRICT

Part = Annotated[float, Field(ge=0, le=1)]

_GREY = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601
_LEVELS = 256
_MOST_DEGREES, _MOST_SHEAR, _MOST_SHIFT, _MOST_CHANGE = 30.0, 0.3, 0.3, 0.9  # RandAugment's at magnitude 1
_GEOMETRIC, _OF_COLOUR = 5, 6  # operations of each kind in RandAugment
_PARTNERS, _SHARES, _CHANGES = 101, 102, 103  # streams of an episode's key, apart from those of learners


@settings(frozen=True, kw_only=True, config=STRICT)
class Flip:
    """Left and right change places in half of the items."""

    name: Literal["flip"] = "flip"

    def __call__(self, items: Tensor, keys: Tensor) -> Tensor:
        return torch.where(_per_item(_uniform(keys, 1)[:, 0] < 0.5), items.flip(-1), items)


@settings(frozen=True, kw_only=True, config=STRICT)
class Affine:
    """Turned by up to `degrees`, scaled by 1 - `scale` to 1 + `scale`, and shifted by up to `shift` of the side.

    What comes in from outside repeats the edge.
    """

    name: Literal["affine"] = "affine"
    degrees: Annotated[float, Field(ge=0, le=180)] = 10.0
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.1
    shift: Part = 0.1

    def __call__(self, items: Tensor, keys: Tensor) -> Tensor:
        angle, scale, x, y = (2 * _uniform(keys, 4) - 1).unbind(1)
        angle, scale = angle * math.radians(self.degrees), 1 + self.scale * scale
        cosine, sine = torch.cos(angle) / scale, torch.sin(angle) / scale
        rows = [cosine, -sine, 2 * self.shift * x, sine, cosine, 2 * self.shift * y]
        return _warped(items, torch.stack(rows, 1).view(-1, 2, 3))


@settings(frozen=True, kw_only=True, config=STRICT)
class Crop:
    """A square of at least `smallest` of the area, anywhere in the item, resized to the whole."""

    name: Literal["crop"] = "crop"
    smallest: Annotated[float, Field(gt=0, le=1)] = 0.5

    def __call__(self, items: Tensor, keys: Tensor) -> Tensor:
        area, x, y = _uniform(keys, 3).unbind(1)
        side = torch.sqrt(self.smallest + (1 - self.smallest) * area)
        zero = torch.zeros_like(side)
        rows = [side, zero, (1 - side) * (2 * x - 1), zero, side, (1 - side) * (2 * y - 1)]
        return _warped(items, torch.stack(rows, 1).view(-1, 2, 3))


@settings(frozen=True, kw_only=True, config=STRICT)
class Colour:
    """Brightness, contrast and saturation are multiplied by 1 - x to 1 + x, each by a number of its own."""

    name: Literal["colour"] = "colour"
    brightness: Part = 0.4
    contrast: Part = 0.4
    saturation: Part = 0.4

    def __call__(self, items: Tensor, keys: Tensor) -> Tensor:
        brightness, contrast, saturation = (2 * _uniform(keys, 3) - 1).unbind(1)
        items = _brighter(items, 1 + self.brightness * brightness)
        items = _more_contrast(items, 1 + self.contrast * contrast)
        return _more_saturated(items, 1 + self.saturation * saturation)


@settings(frozen=True, kw_only=True, config=STRICT)
class Grey:
    """Without colour, in `part` of the items."""

    name: Literal["grey"] = "grey"
    part: Part = 0.2

    def __call__(self, items: Tensor, keys: Tensor) -> Tensor:
        chosen = _uniform(keys, 1)[:, 0] < self.part
        return torch.where(_per_item(chosen), _grey(items).expand_as(items), items)


@settings(frozen=True, kw_only=True, config=STRICT)
class Noise:
    """Normal noise is added to every pixel."""

    name: Literal["noise"] = "noise"
    std: Annotated[float, Field(ge=0)] = 0.05  # of values in 0..1

    def __call__(self, items: Tensor, keys: Tensor) -> Tensor:
        n_pixels = items[0].numel()
        radius, angle = _uniform(keys, 2 * n_pixels).view(-1, 2, n_pixels).unbind(1)  # Box and Muller, 1958
        normal = torch.sqrt(-2 * torch.log1p(-radius)) * torch.cos(2 * math.pi * angle)
        return (items + self.std * normal.view_as(items)).clamp(0, 1)


@settings(frozen=True, kw_only=True, config=STRICT)
class Cutout:
    """A square of `side` of the side is grey. DeVries and Taylor, "Improved Regularization of CNNs with Cutout", 2017.

    Its centre is anywhere in the item, so that part of it may lie outside.
    """

    name: Literal["cutout"] = "cutout"
    side: Part = 0.5

    def __call__(self, items: Tensor, keys: Tensor) -> Tensor:
        return torch.where(_square(items, _uniform(keys, 2), self.side / 2), 0.5, items)


@settings(frozen=True, kw_only=True, config=STRICT)
class RandAugment:
    """`n` operations of eleven, each chosen and aimed at random, of up to `magnitude`.

    After Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space", 2020. All
    operations of geometry are one warp, so that an item is interpolated once. Without equalize and autocontrast.
    """

    name: Literal["randaugment"] = "randaugment"
    n: Annotated[int, Field(ge=1)] = 2
    magnitude: Part = 0.3

    def __call__(self, items: Tensor, keys: Tensor) -> Tensor:
        which, aims = _uniform(keys, 2 * self.n).view(-1, 2, self.n).unbind(1)
        chosen = (which * (_GEOMETRIC + _OF_COLOUR)).long()
        strength = (2 * aims - 1) * self.magnitude
        items = _warped(items, _geometry(chosen, strength))
        for place in range(self.n):
            items = _coloured(items, chosen[:, place] - _GEOMETRIC, strength[:, place])
        return items


Augmentation = Annotated[
    Flip | Affine | Crop | Colour | Grey | Noise | Cutout | RandAugment, Field(discriminator="name")
]
Augmentations = tuple[Augmentation, ...]


@settings(frozen=True, kw_only=True, config=STRICT)
class Mixup:
    """Items are averaged with others, and so are their losses.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018. The share is drawn from Beta(alpha, alpha).
    """

    name: Literal["mixup"] = "mixup"
    alpha: Annotated[float, Field(gt=0)] = 0.2


@settings(frozen=True, kw_only=True, config=STRICT)
class CutMix:
    """A square of items is that of others, and the losses are averaged by its area.

    Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", 2019.
    """

    name: Literal["cutmix"] = "cutmix"
    alpha: Annotated[float, Field(gt=0)] = 1.0


Mix = Annotated[Mixup | CutMix, Field(discriminator="name")]


@settings(frozen=True, kw_only=True, config=STRICT)
class EpisodeAugmentation:
    """What is done to the items of training episodes. `query` is what is done to queries; None does as to the support.

    `mix` mixes queries of an episode with one another. A learner that is trained on batches of items has no queries:
    `support` and `mix` are for all of its items.
    """

    support: Augmentations = ()
    query: Augmentations | None = None
    mix: Mix | None = None

    @property
    def of_queries(self) -> Augmentations:
        return self.support if self.query is None else self.query

    @property
    def changes_nothing(self) -> bool:
        return not (self.support or self.query or self.mix)


def augmented_episodes(episodes: EpisodeBatch, how: EpisodeAugmentation) -> EpisodeBatch:
    """The episodes with their items changed, by draws from their keys."""
    if how.changes_nothing:
        return episodes
    n_support, n_query = episodes.support_y.shape[1], episodes.query_y.shape[1]
    keys = item_keys(episodes.keys, n_support + n_query)
    support_x = augmented(episodes.support_x, keys[:, :n_support], how.support)
    query_x = augmented(episodes.query_x, keys[:, n_support:], how.of_queries)
    query_x, mixed = mixed_items(query_x, episodes.query_y, episodes.keys, how.mix)
    return replace(episodes, support_x=support_x, query_x=query_x, mixed=mixed)


def augmented_batch(
    items: Tensor, labels: Tensor, key: int, how: EpisodeAugmentation
) -> tuple[Tensor, MixedLabels | None]:
    """The same for a batch of items (R, C, H, W) that is no episode, with labels (R,), by its key."""
    if how.changes_nothing:
        return items, None
    keys = torch.tensor([key], device=items.device)
    changed = augmented(items, item_keys(keys, len(items))[0], how.support)
    mixed, labels_of_others = mixed_items(changed[None], labels[None], keys, how.mix)
    return mixed[0], labels_of_others


def item_keys(keys: Tensor, n_items: int, part: int = 0) -> Tensor:
    """(B, n_items) a key for each item of episodes or batches with keys (B,); each part has others."""
    items = torch.arange(n_items, device=keys.device)
    return random_words(_stream(keys, _CHANGES + part)[:, None], items)


def mixed_items(items: Tensor, labels: Tensor, keys: Tensor, mix: Mix | None) -> tuple[Tensor, MixedLabels | None]:
    """Items (B, Q, C, H, W), each mixed with another one of its episode, and the labels of those; keys (B,)."""
    if mix is None:
        return items, None
    from scipy.special import betaincinv

    _check_images(items, 2)
    n_items = items.shape[1]
    partner = random_words(_stream(keys, _PARTNERS)[:, None], torch.arange(n_items, device=keys.device)).argsort(1)
    episode = torch.arange(len(items), device=items.device)[:, None]
    other, other_labels = items[episode, partner], labels[episode, partner]
    x, y, chance = _uniform(_stream(keys, _SHARES), 3).unbind(1)
    quantiles = betaincinv(mix.alpha, mix.alpha, chance.cpu().double().numpy())
    share = torch.from_numpy(quantiles).to(items)
    if isinstance(mix, Mixup):
        of_each = share[:, None, None, None, None]
        return of_each * items + (1 - of_each) * other, MixedLabels(y=other_labels, share=share)
    half = torch.sqrt(1 - share) / 2
    inside = _square(items[:, 0], torch.stack([x, y], 1), half[:, None, None])  # (B, 1, H, W)
    share = 1 - inside.to(items.dtype).mean((1, 2, 3))
    return torch.where(inside[:, None], other, items), MixedLabels(y=other_labels, share=share)


def augmented(items: Tensor, keys: Tensor, augmentations: Sequence[Augmentation]) -> Tensor:
    """The items (..., C, H, W), changed by one augmentation after the other; keys (...) int64, one for each.

    Raises ConfigError for items that are not images.
    """
    if not augmentations:
        return items
    _check_images(items, keys.dim())
    found, keys = items.flatten(0, keys.dim() - 1), keys.flatten()
    for number, augment in enumerate(augmentations):
        found = augment(found, random_words(keys, torch.tensor(number, device=keys.device)))
    return found.view(items.shape)


def _check_images(items: Tensor, n_before: int) -> None:
    if items.dim() != n_before + 3:
        raise ConfigError(
            f"augment got items of shape {tuple(items.shape[n_before:])}; needed images; next: take augment out"
        )


def _stream(keys: Tensor, stream: int) -> Tensor:
    return random_words(keys, torch.tensor(stream, device=keys.device))


def _uniform(keys: Tensor, n: int) -> Tensor:
    """(R, n) numbers in 0..1, below 1, of the keys (R,)."""
    words = random_words(keys[:, None], torch.arange(n, device=keys.device))
    return (words >> 40 & (1 << 24) - 1).float() / (1 << 24)


def _per_item(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _warped(items: Tensor, matrices: Tensor) -> Tensor:
    """Each item seen through its matrix (2, 3), which takes places of the result to places of the item, in -1..1."""
    grid = F.affine_grid(matrices.to(items.dtype), list(items.shape), align_corners=False)
    return F.grid_sample(items, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _square(items: Tensor, centre: Tensor, half: float | Tensor) -> Tensor:
    """(R, 1, H, W) whether a pixel lies within `half` of the centre (R, 2), in parts of the side, along both axes."""
    side = items.shape[-1]
    places = (torch.arange(side, device=items.device) + 0.5) / side
    inside = (places - centre[:, :, None]).abs() < half  # (R, 2, side)
    return (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None]


def _grey(items: Tensor) -> Tensor:
    """(R, 1, H, W)."""
    if items.shape[1] == 1:
        return items
    return (items * items.new_tensor(_GREY)[:, None, None]).sum(1, keepdim=True)


def _brighter(items: Tensor, factor: Tensor) -> Tensor:
    return (items * _per_item(factor)).clamp(0, 1)


def _more_contrast(items: Tensor, factor: Tensor) -> Tensor:
    mean = _grey(items).mean((1, 2, 3), keepdim=True)
    return (mean + (items - mean) * _per_item(factor)).clamp(0, 1)


def _more_saturated(items: Tensor, factor: Tensor) -> Tensor:
    grey = _grey(items)
    return (grey + (items - grey) * _per_item(factor)).clamp(0, 1)


def _geometry(chosen: Tensor, strength: Tensor) -> Tensor:
    """(R, 2, 3) the warps that the operations (R, n) of these strengths amount to; those of colour are none."""
    total = torch.eye(3, device=strength.device).repeat(len(chosen), 1, 1)
    for operation, by in zip(chosen.unbind(1), strength.unbind(1), strict=True):
        one = torch.eye(3, device=strength.device).repeat(len(chosen), 1, 1)
        angle = torch.where(operation == 0, by * math.radians(_MOST_DEGREES), 0.0)
        one[:, 0, 0] = one[:, 1, 1] = torch.cos(angle)
        one[:, 0, 1] = -torch.sin(angle) + torch.where(operation == 1, by * _MOST_SHEAR, 0.0)
        one[:, 1, 0] = torch.sin(angle) + torch.where(operation == 2, by * _MOST_SHEAR, 0.0)
        one[:, 0, 2] = torch.where(operation == 3, by * 2 * _MOST_SHIFT, 0.0)
        one[:, 1, 2] = torch.where(operation == 4, by * 2 * _MOST_SHIFT, 0.0)
        total = total @ one
    return total[:, :2]


def _coloured(items: Tensor, operation: Tensor, strength: Tensor) -> Tensor:
    """Each item after the operation of its number (R,), 0 to 5; a number below 0 is none."""
    factor, amount = 1 + _MOST_CHANGE * strength, strength.abs()
    operations: list[Callable[[], Tensor]] = [
        lambda: _brighter(items, factor),
        lambda: _more_contrast(items, factor),
        lambda: _more_saturated(items, factor),
        lambda: _sharper(items, factor),
        lambda: torch.where(items <= _per_item(1 - amount), items, 1 - items),  # solarize
        lambda: _fewer_levels(items, amount),
    ]
    for number, change in enumerate(operations):
        items = torch.where(_per_item(operation == number), change(), items)
    return items


def _sharper(items: Tensor, factor: Tensor) -> Tensor:
    smooth = F.avg_pool2d(F.pad(items, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return (smooth + (items - smooth) * _per_item(factor)).clamp(0, 1)


def _fewer_levels(items: Tensor, amount: Tensor) -> Tensor:
    """Posterize: of 256 levels, multiples of 1 to 32 remain."""
    width = _per_item(2 ** (5 * amount).round())
    return torch.floor((items * (_LEVELS - 1)).round() / width) * width / (_LEVELS - 1)
