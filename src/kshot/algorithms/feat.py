"""FEAT: prototypes that are adapted to one another by attention.

Shapes: B episodes, N way, K shot, Q queries per class, D features.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.algorithms.learner import About, MetaLearner, Problem, embed_alone, embed_jointly
from kshot.algorithms.maths.distances import prototypes, squared_distances
from kshot.algorithms.maths.losses import EpisodeLoss, cross_entropy, full_precision, query_cross_entropy
from kshot.backbones.contract import Backbone, Flatten
from kshot.episodes.episode import EpisodeBatch, Support
from kshot.settings import STRICT


@settings(frozen=True, kw_only=True, config=STRICT)
class FEATConfig:
    name: Literal["feat"] = "feat"
    temperature: Annotated[float, Field(gt=0)] = 1.0  # what the distances are divided by
    contrast: Annotated[float, Field(ge=0)] = 0.1  # weight of the contrastive regulariser

    about: ClassVar[About] = About(
        use="a backbone that is trained already, where classes of one problem have to be told apart from one another",
        cost="trains like protonet; one attention over the classes per episode",
        source="Ye et al. 2020",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "FEAT":
        return FEAT(backbone, self, SetAttention(backbone.n_features), loss)


class FEAT(MetaLearner[Tensor]):
    """The prototypes of an episode attend to one another before a query is given to the nearest.

    Ye, Hu, Zhan and Sha, "Few-Shot Learning via Embedding Adaptation with Set-to-Set Functions", 2020, section 4.2 with
    the transformer, and the contrastive regulariser of section 4.3: the items of each class are adapted as a set too,
    and every item has to be nearest to the mean of its own class's. Deviations: no dropout, so that the loss of an
    episode is a function of the episode; and one temperature for both losses, where the authors' code has two. It is 1
    for features of 64 numbers; the authors have 64 for their 1,600.

    In training the features are normalised by the episode's own items, outside training by population statistics.
    """

    def __init__(
        self,
        backbone: nn.Module,
        config: FEATConfig,
        attention: "SetAttention",
        loss: EpisodeLoss = query_cross_entropy,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.attention = attention
        self.loss = loss

    def adapt(self, support: Support) -> Tensor:
        """Adapted prototypes (B, N, D)."""
        return self._adapted(embed_alone(self.backbone, support.x), support.y, support.n_way)

    def classify(self, adapted: Tensor, query_x: Tensor) -> Tensor:
        return self._logits(embed_alone(self.backbone, query_x), adapted)

    def meta_loss(self, episodes: EpisodeBatch, done: float = 0.0) -> Tensor:
        support, query = embed_jointly(self.backbone, episodes)
        with full_precision(query):
            adapted = self._adapted(support, episodes.support_y, episodes.n_way)
            loss = self.loss(self._logits(query, adapted), episodes)
            if self.config.contrast == 0:
                return loss
            return loss + self.config.contrast * self._contrast(support, query, episodes)

    def on_features(self) -> "FEAT":
        return FEAT(Flatten(), self.config, self.attention, self.loss)

    def _adapted(self, features: Tensor, labels: Tensor, n_way: int) -> Tensor:
        adapted: Tensor = self.attention(prototypes(features, labels, n_way))
        return adapted

    def _logits(self, features: Tensor, centres: Tensor) -> Tensor:
        return -squared_distances(features, centres) / self.config.temperature

    def _contrast(self, support: Tensor, query: Tensor, episodes: EpisodeBatch) -> Tensor:
        """(B,): cross-entropy of all items by the centres of the adapted classes."""
        items = torch.cat([support, query], dim=1)
        order = torch.cat([episodes.support_y, episodes.query_y], dim=1).argsort(dim=1, stable=True)
        by_class = items.gather(1, order[:, :, None].expand(items.shape)).view(
            len(items), episodes.n_way, -1, items.shape[2]
        )
        centres = self.attention(by_class.flatten(0, 1)).mean(1).view(*by_class.shape[:2], -1)
        of_support = cross_entropy(self._logits(support, centres), episodes.support_y)
        of_query = query_cross_entropy(self._logits(query, centres), episodes)
        return torch.lerp(of_support, of_query, query.shape[1] / items.shape[1])


class SetAttention(nn.Module):
    """Sets (B, I, D) -> (B, I, D): scaled dot-product attention of one head, added to what entered, and normalised."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.of_query, self.of_key, self.of_value = (nn.Linear(n_features, n_features, bias=False) for _ in range(3))
        self.output = nn.Linear(n_features, n_features)
        self.norm = nn.LayerNorm(n_features)

    def forward(self, items: Tensor) -> Tensor:
        attended = F.scaled_dot_product_attention(self.of_query(items), self.of_key(items), self.of_value(items))
        adapted: Tensor = self.norm(items + self.output(attended))
        return adapted
