"""Baseline and Baseline++: a head that gradient descent fits to the support set.

Shapes: B episodes, S support items, N way, D features, C classes of the training.
"""

from copy import copy
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.algorithms.learner import About, Problem, TransferLearner, embed_alone
from kshot.algorithms.maths.distances import prototypes
from kshot.algorithms.maths.heads import CosineHead, LinearHead, class_head, class_logits
from kshot.algorithms.maths.losses import EpisodeLoss, cross_entropy, query_cross_entropy
from kshot.backbones.contract import Backbone, Flatten
from kshot.episodes.episode import Support
from kshot.settings import STRICT

_MOMENTUM, _WEIGHT_DECAY = 0.9, 1e-3
_MANY_CLASSES = 200


@settings(frozen=True, kw_only=True, config=STRICT)
class BaselineConfig:
    name: Literal["baseline"] = "baseline"
    head: Literal["linear", "cosine"] = "linear"  # Baseline, Baseline++
    steps: Annotated[int, Field(ge=1)] = 100
    learning_rate: Annotated[float, Field(gt=0)] = 0.01

    about: ClassVar[About] = About(
        use="to compare with published tables of Baseline and Baseline++",
        cost="ordinary training, or none; 100 small steps per support set",
        source="Chen et al. 2019",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "Baseline":
        n_features, n_classes = backbone.n_features, problem.n_train_classes
        if self.head == "linear" or n_classes is None:
            return Baseline(backbone, self, class_head(n_features, n_classes))
        return Baseline(backbone, self, CosineHead(n_features, n_classes, scale=cosine_scale(n_classes)))


class Baseline(TransferLearner[LinearHead]):
    """A linear head, or one of cosines, is fitted to the support features of a backbone that stays as it is.

    Chen, Liu, Kira, Wang and Huang, "A Closer Look at Few-shot Classification", 2019, section 3: Baseline with the
    linear head, Baseline++ with that of cosines. Momentum, its damping, weight decay and the scale of the cosines are
    those of the authors' code. Two deviations: a step takes the whole support set, not 4 items of it, and the head
    starts from zero, or for cosines from the class means, instead of at random, so that the fit is the same again.

    `class_head`, of the same kind, is the classifier of the training classes.
    """

    def __init__(self, backbone: nn.Module, config: BaselineConfig, class_head: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.class_head = class_head
        self.inner_steps = config.steps

    def adapt(self, support: Support) -> LinearHead:
        features = self._features(support.x).detach()
        weight = torch.zeros_like(features[:, :1]).repeat(1, support.n_way, 1)
        if self.config.head == "cosine":
            weight = prototypes(features, support.y, support.n_way)
        parameters = [weight, torch.zeros_like(weight[:, :, 0])]
        velocities: list[Tensor] = []
        for _ in range(self.inner_steps):
            with torch.enable_grad():
                leaves = [parameter.detach().requires_grad_() for parameter in parameters]
                loss = cross_entropy(self._head(*leaves).logits(features), support.y).sum()
                of_loss = torch.autograd.grad(loss, leaves, materialize_grads=True)
            gradients = [g + _WEIGHT_DECAY * p for g, p in zip(of_loss, parameters, strict=True)]
            velocities = [torch.lerp(g, v, _MOMENTUM) for g, v in zip(gradients, velocities or gradients, strict=True)]
            parameters = [p - self.config.learning_rate * v for p, v in zip(parameters, velocities, strict=True)]
        return self._head(*parameters)

    def classify(self, adapted: LinearHead, query_x: Tensor) -> Tensor:
        return adapted.logits(self._features(query_x))

    def class_logits(self, items: Tensor) -> Tensor:
        return class_logits(self.backbone, self.class_head, items)

    def on_features(self) -> "Baseline":
        return Baseline(Flatten(), self.config).with_inner_steps(self.inner_steps)

    def with_inner_steps(self, n_steps: int) -> "Baseline":
        other = copy(self)
        other.inner_steps = n_steps
        return other

    def _features(self, items: Tensor) -> Tensor:
        features = embed_alone(self.backbone, items)
        return F.normalize(features, dim=2) if self.config.head == "cosine" else features

    def _head(self, weight: Tensor, bias: Tensor) -> LinearHead:
        """A head of cosines is a linear one of unit length, without bias, on features of unit length."""
        if self.config.head == "linear":
            return LinearHead(weight=weight, bias=bias)
        return LinearHead(
            weight=cosine_scale(weight.shape[1]) * F.normalize(weight, dim=2), bias=torch.zeros_like(bias)
        )


def cosine_scale(n_classes: int) -> float:
    """Of the cosines: the more classes, the sharper they have to be told apart."""
    return 2.0 if n_classes <= _MANY_CLASSES else 10.0
