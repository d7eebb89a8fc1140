"""Settings of the pretrain stage: ordinary training of the backbone on the items of meta_train, before any episode.

Its model is a baseline of the evaluation, and may be what meta-training starts from.

Shapes: I items, D features.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.algorithms.maths.losses import CrossEntropyConfig, LossConfig, full_precision
from kshot.episodes.augmentation import Augmentations, Colour, Crop, Flip, Grey, Mix, augmented
from kshot.seeding import random_words
from kshot.settings import STRICT
from kshot.training.loop import TrainingSettings
from kshot.training.optimizers import AdamConfig, OptimizerConfig

_SECOND_VIEW = 1  # the stream of an item's key for it; the first is the key itself
_TURNS = 4


@settings(frozen=True, kw_only=True, config=STRICT)
class NoPretraining:
    name: Literal["none"] = "none"


@settings(frozen=True, kw_only=True, config=STRICT)
class _Pretraining:
    """`n_steps` of `batches_per_step` batches with a cosine schedule; the weights that are best on meta_val are kept.

    The batches of a step are shared out among the processes of the training.
    """

    n_steps: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=2)] = 128  # items
    batches_per_step: Annotated[int, Field(ge=1)] = 1
    optimizer: OptimizerConfig = Field(default_factory=AdamConfig)
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    validate_every: Annotated[int, Field(ge=1)] = 500  # steps
    patience: Annotated[int, Field(ge=1)] = 10  # validations in a row without a better accuracy
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_every_s: Annotated[float, Field(ge=0)] = 30.0

    @property
    def training(self) -> TrainingSettings:
        return TrainingSettings(
            n_steps=self.n_steps,
            episodes_per_step=self.batches_per_step,
            optimizer=self.optimizer,
            outer_lr=self.learning_rate,
            schedule="cosine",
            batch_size=self.batch_size,
            validate_every=self.validate_every,
            patience=self.patience,
            precision=self.precision,
            checkpoint_every_s=self.checkpoint_every_s,
        )


@settings(frozen=True, kw_only=True, config=STRICT)
class SupervisedPretraining(_Pretraining):
    """Classification of the meta_train classes."""

    name: Literal["supervised"] = "supervised"
    loss: LossConfig = Field(default_factory=CrossEntropyConfig)
    augment: Augmentations = ()
    mix: Mix | None = None


@settings(frozen=True, kw_only=True, config=STRICT)
class RotationPretraining(_Pretraining):
    """By how many quarters was this item turned? Labels are not used.

    Gidaris, Singh and Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations", 2018, section 3.
    """

    name: Literal["rotation"] = "rotation"
    augment: Augmentations = ()

    def head(self, n_features: int) -> nn.Module:
        return nn.Linear(n_features, _TURNS)

    def loss(self, backbone: nn.Module, head: nn.Module, items: Tensor, keys: Tensor) -> Tensor:
        changed = augmented(items, keys, self.augment)
        turned = torch.cat([changed.rot90(quarters, (-2, -1)) for quarters in range(_TURNS)])
        logits = head(backbone(turned, len(turned)))
        return F.cross_entropy(logits.float(), torch.arange(_TURNS, device=items.device).repeat_interleave(len(items)))


def _views() -> Augmentations:
    return (Crop(smallest=0.3), Flip(), Colour(), Grey())


@settings(frozen=True, kw_only=True, config=STRICT)
class SimCLRPretraining(_Pretraining):
    """Which two views are of the same item? Labels are not used.

    Chen, Kornblith, Norouzi and Hinton, "A Simple Framework for Contrastive Learning of Visual Representations", 2020,
    equation 1, without blur among the augmentations.
    """

    name: Literal["simclr"] = "simclr"
    augment: Annotated[Augmentations, Field(min_length=1)] = Field(default_factory=_views)
    temperature: Annotated[float, Field(gt=0)] = 0.5
    width: Annotated[int, Field(ge=1)] = 128  # of the projection

    def head(self, n_features: int) -> nn.Module:
        return nn.Sequential(nn.Linear(n_features, n_features), nn.ReLU(), nn.Linear(n_features, self.width))

    def loss(self, backbone: nn.Module, head: nn.Module, items: Tensor, keys: Tensor) -> Tensor:
        views = torch.cat([augmented(items, of_view, self.augment) for of_view in _keys_of_views(keys)])
        features = backbone(views, len(views))
        with full_precision(views):
            return contrastive_loss(head(features.float()), self.temperature)


def contrastive_loss(projections: Tensor, temperature: float) -> Tensor:
    """NT-Xent of projections (2 I, D), of which i and i + I are two views of the same item."""
    unit = F.normalize(projections, dim=1)
    alike = unit @ unit.T / temperature
    alike = alike.masked_fill(torch.eye(len(unit), dtype=torch.bool, device=unit.device), -torch.inf)
    partner = torch.arange(len(unit), device=unit.device).roll(len(unit) // 2)
    return F.cross_entropy(alike, partner)


def _keys_of_views(keys: Tensor) -> Iterator[Tensor]:
    yield keys
    yield random_words(keys, torch.tensor(_SECOND_VIEW, device=keys.device))


AnyPretraining = SupervisedPretraining | RotationPretraining | SimCLRPretraining
PretrainConfig = Annotated[NoPretraining | AnyPretraining, Field(discriminator="name")]
