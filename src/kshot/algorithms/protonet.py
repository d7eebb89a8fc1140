"""Prototypical Networks.

Shapes: B episodes, S support items, Q query items, N way, D features.
"""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn

from kshot.algorithms.learner import About, MetaLearner, Problem, embed_alone, embed_jointly
from kshot.algorithms.maths.distances import prototypes, squared_distances
from kshot.algorithms.maths.losses import EpisodeLoss, full_precision, query_cross_entropy
from kshot.backbones.contract import Backbone, Flatten
from kshot.episodes.episode import EpisodeBatch, Support
from kshot.settings import STRICT


@settings(frozen=True, kw_only=True, config=STRICT)
class ProtoNetConfig:
    name: Literal["protonet"] = "protonet"

    about: ClassVar[About] = About(
        use="many classes to learn from, any number at test: try it first where no pretrained encoder fits",
        cost="the cheapest training on episodes; an answer is one pass over the items and one mean per class",
        source="Snell et al. 2017",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "ProtoNet":
        return ProtoNet(backbone, loss)


class ProtoNet(MetaLearner[Tensor]):
    """Each class is the mean of its support features, and a query belongs to the nearest mean.

    Snell, Swersky and Zemel, "Prototypical Networks for Few-shot Learning", 2017, equations 1 and 2, with squared
    Euclidean distance. In training the features are normalised by the episode's own items, as in the authors'
    code; outside training by population statistics, so that a prediction depends on no other query.
    """

    def __init__(self, backbone: nn.Module, loss: EpisodeLoss = query_cross_entropy) -> None:
        super().__init__()
        self.backbone = backbone
        self.loss = loss

    def adapt(self, support: Support) -> Tensor:
        """Prototypes (B, N, D)."""
        return prototypes(embed_alone(self.backbone, support.x), support.y, support.n_way)

    def classify(self, adapted: Tensor, query_x: Tensor) -> Tensor:
        return -squared_distances(embed_alone(self.backbone, query_x), adapted)

    def meta_loss(self, episodes: EpisodeBatch, done: float = 0.0) -> Tensor:
        support, query = embed_jointly(self.backbone, episodes)
        with full_precision(query):
            centres = prototypes(support, episodes.support_y, episodes.n_way)
            return self.loss(-squared_distances(query, centres), episodes)

    def on_features(self) -> "ProtoNet":
        return ProtoNet(Flatten(), self.loss)
