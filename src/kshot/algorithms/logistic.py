"""Logistic regression on the support set, fitted until it has converged.

Shapes: B episodes, S support items, N way, D features, C classes of the training.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.algorithms.learner import About, Problem, TransferLearner, embed_alone
from kshot.algorithms.maths.heads import LinearHead, class_head, class_logits
from kshot.algorithms.maths.losses import EpisodeLoss, one_hot, query_cross_entropy
from kshot.backbones.contract import Backbone, Flatten
from kshot.episodes.episode import Support
from kshot.settings import STRICT

_MOST_STEPS = 2000


@settings(frozen=True, kw_only=True, config=STRICT)
class LogisticConfig:
    name: Literal["logistic"] = "logistic"
    penalty: Annotated[float, Field(gt=0)] = 0.1  # of half the squared weights, beside the sum of the losses

    about: ClassVar[About] = About(
        use="a frozen encoder and any number of examples",
        cost="ordinary training, or none; fitted until it has converged",
        source="Tian et al. 2020",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "Logistic":
        return Logistic(backbone, self, class_head(backbone.n_features, problem.n_train_classes))


class Logistic(TransferLearner[LinearHead]):
    """A multinomial logistic regression with a penalty is fitted to the support features.

    Tian et al., "Rethinking Few-Shot Image Classification: A Good Embedding Is All You Need?", 2020, section 3, without
    distillation: features of unit length. The penalty is 1 in the authors' code, and 0.1 here: that is more accurate
    on meta_val of the built-in glyphs, 5- and 20-way, 1- and 5-shot.

    Fitted by Newton steps with a fixed bound in place of the Hessian, so that one matrix of each episode is inverted
    once: Böhning, "Multinomial logistic regression algorithm", 1992; accelerated, and restarted by the gradient, as in
    O'Donoghue and Candès, "Adaptive Restart for Accelerated Gradient Schemes", 2015.
    """

    def __init__(self, backbone: nn.Module, config: LogisticConfig, class_head: nn.Linear | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.class_head = class_head

    def adapt(self, support: Support) -> LinearHead:
        features = F.normalize(embed_alone(self.backbone, support.x), dim=2)
        return fitted(features, support.y, support.n_way, penalty=self.config.penalty)

    def classify(self, adapted: LinearHead, query_x: Tensor) -> Tensor:
        return adapted.logits(F.normalize(embed_alone(self.backbone, query_x), dim=2))

    def class_logits(self, items: Tensor) -> Tensor:
        return class_logits(self.backbone, self.class_head, items)

    def on_features(self) -> "Logistic":
        return Logistic(Flatten(), self.config)


def fitted(features: Tensor, labels: Tensor, n_way: int, *, penalty: float) -> LinearHead:
    """The head that minimises cross-entropy, summed over features (B, S, D), and half `penalty` times its squares.

    The bias has no penalty. The weights lie in the span of the features, so with D > S the fit is one of S numbers.
    """
    n_support, n_features = features.shape[1:]
    if n_features <= n_support:
        return _fitted(features, labels, n_way, penalty)
    basis = torch.linalg.qr(features.double().transpose(1, 2)).Q.to(features.dtype)  # (B, D, S)
    head = _fitted(features @ basis, labels, n_way, penalty)
    return LinearHead(weight=head.weight @ basis.transpose(1, 2), bias=head.bias)


def _fitted(features: Tensor, labels: Tensor, n_way: int, penalty: float) -> LinearHead:
    """By steps until no entry of an episode's gradient is above the square root of the precision."""
    rows = F.pad(features, (0, 1), value=1.0)  # the last weight is the bias
    targets = one_hot(labels, n_way, like=rows)
    decay = torch.full_like(rows[0, 0], penalty)
    decay[-1] = 0.0
    bound = rows.transpose(1, 2) @ rows / 2 + torch.diag(decay)  # (B, D + 1, D + 1), above every Hessian
    inverse = torch.linalg.inv(bound.double()).to(rows.dtype)
    weight = rows.new_zeros(len(rows), n_way, rows.shape[2])
    ahead, age = weight, rows.new_zeros(len(rows), 1, 1)
    enough = torch.finfo(rows.dtype).eps ** 0.5
    for _ in range(_MOST_STEPS):
        error = torch.softmax(rows @ ahead.transpose(1, 2), dim=2) - targets  # (B, S, N)
        gradient = error.transpose(1, 2) @ rows + decay * ahead
        going = gradient.abs().amax((1, 2), keepdim=True) > enough
        if not going.any():
            break
        following = torch.where(going, ahead - gradient @ inverse, ahead)
        moved = following - weight
        downhill = (gradient * moved).sum((1, 2), keepdim=True) <= 0
        age = torch.where(downhill, age + 1, 0.0)
        weight, ahead = following, torch.where(going, following + age / (age + 3) * moved, ahead)
    return LinearHead(weight=ahead[:, :, :-1], bias=ahead[:, :, -1])
