"""What the runner needs to know of a learner that adapts in closed form: its name, settings and tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kshot.algorithms.answering import OnFeaturesOfCopies
from kshot.algorithms.feat import FEAT
from kshot.algorithms.lda import LDA
from kshot.algorithms.learner import Learner
from kshot.algorithms.matching import Matching
from kshot.algorithms.protonet import ProtoNet
from kshot.algorithms.r2d2 import R2D2
from kshot.algorithms.ridge import SCALE, Ridge
from kshot.algorithms.siamese import Siamese
from kshot.algorithms.simpleshot import SimpleShot
from kshot.algorithms.tip_adapter import TipAdapter

_SMALLEST = torch.finfo(torch.float32).eps


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`settings` are numbers and words, `state` tensors; `kshot.export.runner` has the function of this name."""

    name: str
    settings: Mapping[str, float | str] = field(default_factory=dict)
    state: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def description(self) -> dict[str, float | str]:
        return {"name": self.name, **self.settings}

    @property
    def arrays(self) -> dict[str, Any]:
        return {name: tensor.detach().cpu().numpy() for name, tensor in self.state.items()}


@dataclass(frozen=True, kw_only=True)
class CopiesOfItems:
    """Of each item `embedded` copies go through the encoder; `support` and `query` are those that either side takes."""

    embedded: int = 1
    support: tuple[int, ...] = (0,)
    query: tuple[int, ...] = (0,)


def recipe_of(learner: Learner[Any]) -> Recipe | None:
    """None for a learner that the runner cannot adapt: one that is fitted in steps, or has a network of its own."""
    match learner:
        case OnFeaturesOfCopies():
            return recipe_of(learner.on_items.learner)
        case ProtoNet():
            return Recipe(name="protonet")
        case SimpleShot():
            return Recipe(name="simpleshot", state={"centre": learner.centre})
        case FEAT():
            settings = {"temperature": learner.config.temperature, "eps": learner.attention.norm.eps}
            return Recipe(name="feat", settings=settings, state=_state(learner.attention))
        case Matching(context=None):
            config = learner.config
            return Recipe(name="matching", settings={"distance": config.distance, "cosine_scale": config.cosine_scale})
        case Siamese():
            return Recipe(name="siamese", state=_state(learner.score))
        case R2D2():
            settings = {"scale": learner.scale.item(), "penalty": learner.log_penalty.exp().item()}
            return Recipe(name="r2d2", settings=settings)
        case Ridge():
            settings = {"scale": SCALE, "penalty": learner.config.penalty, "smallest": _SMALLEST}
            return Recipe(name="ridge", settings=settings)
        case LDA():
            return Recipe(name="lda", settings={"shrinkage": learner.config.shrinkage, "smallest": _SMALLEST})
        case TipAdapter():
            return Recipe(name="tip_adapter", settings={"alpha": learner.config.alpha, "beta": learner.config.beta})
    return None


def copies_of(learner: Learner[Any]) -> CopiesOfItems:
    if not isinstance(learner, OnFeaturesOfCopies):
        return CopiesOfItems()
    how = learner.on_items.how
    return CopiesOfItems(
        embedded=len(how.copies),
        support=tuple(how.copies.index(copy) for copy in how.support.each),
        query=tuple(how.copies.index(copy) for copy in how.query.each),
    )


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in module.state_dict().items()}
