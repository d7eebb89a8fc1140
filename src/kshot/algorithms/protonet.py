"""Prototypical Networks.

Shapes: B episodes, S support items, Q query items, N way, D features.
"""

from typing import Literal

from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn

from kshot.algorithms.learner import MetricLearner
from kshot.algorithms.maths.distances import prototypes, squared_distances
from kshot.algorithms.maths.losses import cross_entropy, full_precision
from kshot.backbones.contract import Flatten
from kshot.episodes.episode import EpisodeBatch, Support
from kshot.settings import STRICT


@settings(frozen=True, kw_only=True, config=STRICT)
class ProtoNetConfig:
    name: Literal["protonet"] = "protonet"

    def build(self, backbone: nn.Module, *, n_features: int, train_way: int) -> "ProtoNet":
        return ProtoNet(backbone)


class ProtoNet(MetricLearner[Tensor]):
    """Snell, Swersky and Zemel, "Prototypical Networks for Few-shot Learning", 2017, equations 1 and 2.

    A class is the mean of its support features; a query goes to the nearest in squared Euclidean
    distance. In training the features are normalised by the episode's own images, as in the authors'
    code; outside training by population statistics, so that a prediction depends on no other query.
    """

    needs_population_statistics = True
    max_way = None

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def adapt(self, support: Support) -> Tensor:
        """Prototypes (B, N, D)."""
        return prototypes(self.embed_episodes(support.x), support.y, support.n_way)

    def classify(self, adapted: Tensor, query_x: Tensor) -> Tensor:
        return -squared_distances(self.embed_episodes(query_x), adapted)

    def meta_loss(self, episodes: EpisodeBatch) -> Tensor:
        support, query = self.embed_jointly(episodes)
        with full_precision(query):
            centres = prototypes(support, episodes.support_y, episodes.n_way)
            return cross_entropy(-squared_distances(query, centres), episodes.query_y)

    def on_features(self) -> "ProtoNet":
        return ProtoNet(Flatten())
