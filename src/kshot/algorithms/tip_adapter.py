"""Tip-Adapter's cache of support features, without a text encoder.

Shapes: B episodes, S support items, Q query items, N way, D features, C classes of the training.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.algorithms.learner import About, Problem, TransferLearner, embed_alone
from kshot.algorithms.maths.heads import class_head, class_logits
from kshot.algorithms.maths.losses import EpisodeLoss, one_hot, query_cross_entropy
from kshot.backbones.contract import Backbone, Flatten
from kshot.episodes.episode import Support
from kshot.settings import STRICT


@settings(frozen=True, kw_only=True, config=STRICT)
class TipAdapterConfig:
    name: Literal["tip_adapter"] = "tip_adapter"
    alpha: Annotated[float, Field(gt=0)] = 10.0  # scale of the logits
    beta: Annotated[float, Field(gt=0)] = 5.5  # how fast affinity falls with distance

    about: ClassVar[About] = About(
        use="a frozen encoder, and classes that fall into several kinds of look",
        cost="ordinary training, or none; nothing is fitted, and a query is compared to every support item",
        source="Zhang et al. 2022",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "TipAdapter":
        return TipAdapter(backbone, self, class_head(backbone.n_features, problem.n_train_classes))


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Keys (B, S, D) of unit length, and values (B, S, N): 1 over the number of items of its class, else 0."""

    keys: Tensor
    values: Tensor


class TipAdapter(TransferLearner[Cache]):
    """Each support item votes for its class, the more the nearer it is to the query.

    Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", 2022: affinities
    exp(-beta (1 - cosine)) to the support items. Two deviations: there is no text encoder, so that the logits are those
    of the cache alone, scaled by alpha; and a class has the mean of its items' votes instead of their sum, so that many
    items do not make it likelier.
    """

    def __init__(self, backbone: nn.Module, config: TipAdapterConfig, class_head: nn.Linear | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.class_head = class_head

    def adapt(self, support: Support) -> Cache:
        keys = F.normalize(embed_alone(self.backbone, support.x), dim=2)
        members = one_hot(support.y, support.n_way, like=keys)
        return Cache(keys=keys, values=members / members.sum(1, keepdim=True))

    def classify(self, adapted: Cache, query_x: Tensor) -> Tensor:
        queries = F.normalize(embed_alone(self.backbone, query_x), dim=2)
        cosine = queries @ adapted.keys.transpose(1, 2)  # (B, Q, S)
        return self.config.alpha * (self.config.beta * (cosine - 1)).exp() @ adapted.values

    def class_logits(self, items: Tensor) -> Tensor:
        return class_logits(self.backbone, self.class_head, items)

    def on_features(self) -> "TipAdapter":
        return TipAdapter(Flatten(), self.config)
