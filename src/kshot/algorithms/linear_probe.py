"""A linear head fitted to the support set over features that are not adapted: the usual strong baseline.

Shapes: B episodes, S support items, Q query items, N way, D features.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.algorithms.learner import MetricLearner
from kshot.algorithms.maths.losses import cross_entropy
from kshot.backbones.contract import Flatten
from kshot.episodes.episode import EpisodeBatch, Support

_STEPS, _RATE, _WEIGHT_DECAY = 100, 0.1, 1e-3


@dataclass(frozen=True, kw_only=True)
class FittedHead:
    """The linear head of each of B episodes: weight (B, N, D), bias (B, N)."""

    weight: Tensor
    bias: Tensor


class LinearProbe(MetricLearner[FittedHead]):
    """Softmax regression on features of unit length: Tian et al., "Rethinking Few-Shot Image Classification: A
    Good Embedding Is All You Need?", 2020, section 3, fitted by 100 steps of Adam with weight decay.

    Not meta-trained: its backbone comes from ordinary classification of the meta_train classes.
    """

    needs_population_statistics = True
    max_way = None

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def adapt(self, support: Support) -> FittedHead:
        features = F.normalize(self.embed_episodes(support.x), dim=2)
        weight = features.new_zeros(len(features), support.n_way, features.shape[2], requires_grad=True)
        bias = features.new_zeros(len(features), support.n_way, requires_grad=True)
        fit = torch.optim.Adam([weight, bias], lr=_RATE)
        for _ in range(_STEPS):
            with torch.enable_grad():
                logits = torch.baddbmm(bias[:, None], features.detach(), weight.transpose(1, 2))
                loss = cross_entropy(logits, support.y).sum() + _WEIGHT_DECAY * weight.square().sum()
                weight.grad, bias.grad = torch.autograd.grad(loss, [weight, bias])
            fit.step()
        return FittedHead(weight=weight.detach(), bias=bias.detach())

    def classify(self, adapted: FittedHead, query_x: Tensor) -> Tensor:
        features = F.normalize(self.embed_episodes(query_x), dim=2)
        return torch.baddbmm(adapted.bias[:, None], features, adapted.weight.transpose(1, 2))

    def meta_loss(self, episodes: EpisodeBatch) -> Tensor:
        raise NotImplementedError("a linear probe is fitted to each episode and never meta-trained")

    def on_features(self) -> "LinearProbe":
        return LinearProbe(Flatten())
