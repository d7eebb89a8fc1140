"""Siamese networks.

Shapes: B episodes, S support items, Q query items, N way, K shot, D features, P pairs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn

from kshot.algorithms.learner import About, MetaLearner, Problem, embed_alone, embed_jointly
from kshot.algorithms.maths.losses import EpisodeLoss, full_precision, one_hot, query_cross_entropy
from kshot.backbones.contract import Backbone, Flatten
from kshot.episodes.episode import EpisodeBatch, MixedLabels, Support
from kshot.settings import STRICT


@settings(frozen=True, kw_only=True, config=STRICT)
class SiameseConfig:
    name: Literal["siamese"] = "siamese"

    about: ClassVar[About] = About(
        use="where the question is whether two items are of one class, and not which class",
        cost="trains like protonet; a query is compared to every support item",
        source="Koch et al. 2015",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "Siamese":
        return Siamese(backbone, PairScore(backbone.n_features), loss)


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Features (B, S, D) of the support items, and the share (B, S, N) that each has in the score of its class."""

    features: Tensor
    shares: Tensor


class Siamese(MetaLearner[Examples]):
    """A pair of items is judged to be alike or not, and a query has the class whose items it is most alike.

    Koch, Zemel and Salakhutdinov, "Siamese Neural Networks for One-shot Image Recognition", 2015, sections 3.1 and 3.2:
    weighted absolute differences of features, and cross-entropy of pairs, half of them of one class. Deviations:
    the pairs are all those of a support and a query item of an episode, where those of one class count as often as all
    others; the features are those of the backbone, without a layer of 4,096 sigmoid units; their weights are never
    positive, so that a difference never makes items more alike, and there is a bias; with several shots a
    class has the mean of its pairs' scores.

    The loss that is given judges pairs: logits (B, P, 2) of "different" and "alike".
    """

    def __init__(self, backbone: nn.Module, score: "PairScore", loss: EpisodeLoss = query_cross_entropy) -> None:
        super().__init__()
        self.backbone = backbone
        self.score = score
        self.loss = loss

    def adapt(self, support: Support) -> Examples:
        features = embed_alone(self.backbone, support.x)
        members = one_hot(support.y, support.n_way, like=features)
        return Examples(features=features, shares=members / members.sum(1, keepdim=True))

    def classify(self, adapted: Examples, query_x: Tensor) -> Tensor:
        scores: Tensor = self.score(embed_alone(self.backbone, query_x), adapted.features)
        return scores @ adapted.shares

    def meta_loss(self, episodes: EpisodeBatch, done: float = 0.0) -> Tensor:
        support, query = embed_jointly(self.backbone, episodes)
        with full_precision(query):
            alike = _alike(episodes.query_y, episodes.support_y)
            pairs = _half_of_them_alike(alike, episodes.n_way)
            scores = pairs(self.score(query, support))
            logits = torch.stack([torch.zeros_like(scores), scores], dim=2)
            mixed = episodes.mixed and MixedLabels(
                y=pairs(_alike(episodes.mixed.y, episodes.support_y)), share=episodes.mixed.share
            )
            return self.loss(logits, _Pairs(query_y=pairs(alike), mixed=mixed))

    def on_features(self) -> "Siamese":
        return Siamese(Flatten(), self.score, self.loss)


class PairScore(nn.Module):
    """How alike two items are, as the logit of a probability: sqrt(D) (threshold - mean of weight * difference)."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_features))
        self.threshold = nn.Parameter(torch.tensor(0.5))

    def forward(self, queries: Tensor, support: Tensor) -> Tensor:
        """(B, Q, S) of features (B, Q, D) and (B, S, D)."""
        n_features = len(self.weight)
        differences: Tensor = torch.cdist(queries * self.weight, support * self.weight, p=1.0) / n_features
        return (self.threshold - differences) * math.sqrt(n_features)


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """Labels (B, P) of pairs: 1 for two items of one class, else 0."""

    query_y: Tensor
    mixed: MixedLabels | None


def _alike(query_y: Tensor, support_y: Tensor) -> Tensor:
    """(B, Q, S): 1 where both items are of one class, else 0."""
    return (query_y[:, :, None] == support_y[:, None]).long()


def _half_of_them_alike(alike: Tensor, n_way: int) -> Callable[[Tensor], Tensor]:
    """(B, Q, S) -> (B, P), with the pairs of one class repeated so that there are as many as of the others.

    alike (B, Q, S) says which are; every query has K of them.
    """
    order = alike.argsort(dim=2, descending=True, stable=True)
    k_shot = alike.shape[2] // n_way

    def pairs(of_pairs: Tensor) -> Tensor:
        of_pairs = of_pairs.gather(2, order)
        same = of_pairs[:, :, :k_shot].repeat(1, 1, n_way - 1)
        return torch.cat([same, of_pairs[:, :, k_shot:]], dim=2).flatten(1)

    return pairs
