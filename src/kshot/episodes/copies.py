"""Copies of items that are made when a model answers: turned, mirrored, or changed at random by fixed draws.

Every item is changed in the same way, whatever stands beside it, so a copy is a function of the item alone.

Shapes: *item the shape of an item, here C, H, W.
"""

from dataclasses import dataclass
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass as settings
from torch import Tensor

from kshot.data.views import View, Views, viewed
from kshot.episodes.augmentation import Augmentations, augmented
from kshot.seeding import random_words
from kshot.settings import STRICT

_KEY = 1_403  # of the draws; it must never change: stored models would answer otherwise


@dataclass(frozen=True, kw_only=True)
class Copy:
    """One way to copy items: a view, or draw number `draw` of changes one after the other; the items where neither."""

    view: View | None = None
    augment: Augmentations = ()
    draw: int = 0

    def of(self, items: Tensor) -> Tensor:
        """Of items (..., *item)."""
        if self.view is not None:
            return viewed(items, self.view)
        keys = random_words(_KEY, torch.tensor(self.draw, device=items.device))
        return augmented(items, keys.expand(items.shape[:-3]), self.augment)


@settings(frozen=True, kw_only=True, config=STRICT)
class Copies:
    """Beside an item itself: it in each of `views`, and `draws` times changed by `augment`, one after the other."""

    views: Views = ()
    draws: Annotated[int, Field(ge=0, le=100)] = 0
    augment: Augmentations = ()

    @model_validator(mode="after")
    def _check_draws(self) -> Self:
        if self.draws and not self.augment:
            raise ValueError(
                f"draws is {self.draws}, and augment names no change; next: set augment: [{{name: crop}}], or draws: 0"
            )
        if self.augment and not self.draws:
            raise ValueError("augment is given, and draws is 0; next: set draws: 4, or take augment out")
        return self

    @property
    def each(self) -> tuple[Copy, ...]:
        """The item itself first."""
        draws = (Copy(augment=self.augment, draw=number) for number in range(self.draws))
        return Copy(), *(Copy(view=view) for view in self.views), *draws

    def __str__(self) -> str:
        names = ", ".join(one.name for one in self.augment)
        return ", ".join([*self.views, *([f"{self.draws} draws of {names}"] if self.draws else [])])


@settings(frozen=True, kw_only=True, config=STRICT)
class AtTestTime:
    """Copies of the items that a trained model is asked with: the support set grows by those of `support`, and the
    logits of a query are the mean over those of `query`.
    """

    support: Copies = Field(default_factory=Copies)
    query: Copies = Field(default_factory=Copies)

    @property
    def copies(self) -> tuple[Copy, ...]:
        """All that either of the two takes, each once."""
        return tuple(dict.fromkeys((*self.support.each, *self.query.each)))

    @property
    def changes_nothing(self) -> bool:
        return len(self.copies) == 1

    def __str__(self) -> str:
        """Such as "support with mirrored; queries with 4 draws of crop"."""
        sides = {"support": self.support, "queries": self.query}
        return "; ".join(f"{name} with {copies}" for name, copies in sides.items() if len(copies.each) > 1)
