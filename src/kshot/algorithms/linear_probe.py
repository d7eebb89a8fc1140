"""A linear head fitted to the support set over features that are not adapted: the usual strong baseline.

Shapes: B episodes, S support items, Q query items, N way, D features, C classes of the training.
"""

from typing import ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.algorithms.learner import About, Problem, TransferLearner, embed_alone
from kshot.algorithms.maths.heads import LinearHead, class_head, class_logits
from kshot.algorithms.maths.losses import EpisodeLoss, cross_entropy, query_cross_entropy
from kshot.backbones.contract import Backbone, Flatten
from kshot.episodes.episode import Support
from kshot.settings import STRICT

_STEPS, _RATE, _WEIGHT_DECAY = 100, 0.1, 1e-3


@settings(frozen=True, kw_only=True, config=STRICT)
class LinearProbeConfig:
    name: Literal["linear_probe"] = "linear_probe"

    about: ClassVar[About] = About(
        use="a frozen encoder, or ordinary training: the baseline that others have to beat",
        cost="ordinary training, or none; 100 small steps per support set",
        source="Tian et al. 2020",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "LinearProbe":
        return LinearProbe(backbone, class_head(backbone.n_features, problem.n_train_classes))


class LinearProbe(TransferLearner[LinearHead]):
    """A linear classifier is fitted to the support features of a backbone that stays as it is.

    Softmax regression on features of unit length: Tian et al., "Rethinking Few-Shot Image Classification: A
    Good Embedding Is All You Need?", 2020, section 3, fitted by 100 steps of Adam with weight decay.

    Its backbone comes from ordinary classification of the meta_train classes: the baseline of Chen et al., "A Closer
    Look at Few-shot Classification", 2019. `class_head` is the classifier of that training; the few-shot answers do
    without it.
    """

    def __init__(self, backbone: nn.Module, class_head: nn.Linear | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.class_head = class_head

    def adapt(self, support: Support) -> LinearHead:
        features = F.normalize(embed_alone(self.backbone, support.x), dim=2)
        weight = features.new_zeros(len(features), support.n_way, features.shape[2], requires_grad=True)
        bias = features.new_zeros(len(features), support.n_way, requires_grad=True)
        fit = torch.optim.Adam([weight, bias], lr=_RATE)
        for _ in range(_STEPS):
            with torch.enable_grad():
                logits = torch.baddbmm(bias[:, None], features.detach(), weight.transpose(1, 2))
                loss = cross_entropy(logits, support.y).sum() + _WEIGHT_DECAY * weight.square().sum()
                weight.grad, bias.grad = torch.autograd.grad(loss, [weight, bias])
            fit.step()
        return LinearHead(weight=weight.detach(), bias=bias.detach())

    def classify(self, adapted: LinearHead, query_x: Tensor) -> Tensor:
        return adapted.logits(F.normalize(embed_alone(self.backbone, query_x), dim=2))

    def class_logits(self, items: Tensor) -> Tensor:
        return class_logits(self.backbone, self.class_head, items)

    def on_features(self) -> "LinearProbe":
        return LinearProbe(Flatten())
