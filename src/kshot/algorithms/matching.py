"""Matching Networks.

Shapes: B episodes, S support items, Q query items, N way, D features.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.algorithms.learner import About, MetaLearner, Problem, embed_alone, embed_jointly
from kshot.algorithms.maths.attention import class_log_sums
from kshot.algorithms.maths.distances import squared_distances
from kshot.algorithms.maths.losses import EpisodeLoss, full_precision, query_cross_entropy
from kshot.backbones.contract import Backbone, Flatten
from kshot.episodes.episode import EpisodeBatch, Support
from kshot.settings import STRICT


@settings(frozen=True, kw_only=True, config=STRICT)
class MatchingConfig:
    name: Literal["matching"] = "matching"
    distance: Literal["l2", "cosine"] = "l2"
    cosine_scale: Annotated[float, Field(gt=0)] = 10.0  # of the cosines; 1 in the paper
    context_steps: Annotated[int, Field(ge=0)] = 0  # of full-context embeddings; 0 without them

    about: ClassVar[About] = About(
        use="classes that fall into several kinds of look, with a few examples of each: items vote, not their mean",
        cost="trains like protonet; a query is compared to every support item; full context is slower with each item",
        source="Vinyals et al. 2016",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "Matching":
        context = FullContext(backbone.n_features, self.context_steps) if self.context_steps else None
        return Matching(backbone, self, context, loss)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What queries attend to: items (B, S, D) with labels (B, S) of N classes."""

    items: Tensor
    labels: Tensor
    n_way: int


class Matching(MetaLearner[Memory]):
    """Each support item votes for its class, the more the nearer it is to the query.

    Vinyals, Blundell, Lillicrap, Kavukcuoglu and Wierstra, "Matching Networks for One Shot Learning", 2016, equation 1
    with the attention of section 2.1.1, and with `context_steps` the full-context embeddings of section 2.1.2. The
    logits are logarithms of the votes. Deviations: the distance may be the squared Euclidean one, which trains better
    and is the default; cosines are multiplied by `cosine_scale`; and see `FullContext`.

    In training the features are normalised by the episode's own items, outside training by population statistics.
    """

    def __init__(
        self,
        backbone: nn.Module,
        config: MatchingConfig,
        context: "FullContext | None" = None,
        loss: EpisodeLoss = query_cross_entropy,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.context = context
        self.loss = loss

    def adapt(self, support: Support) -> Memory:
        return self._memory(embed_alone(self.backbone, support.x), support.y, support.n_way)

    def classify(self, adapted: Memory, query_x: Tensor) -> Tensor:
        return self._votes(adapted, embed_alone(self.backbone, query_x))

    def meta_loss(self, episodes: EpisodeBatch, done: float = 0.0) -> Tensor:
        support, query = embed_jointly(self.backbone, episodes)
        with full_precision(query):
            return self.loss(self._votes(self._memory(support, episodes.support_y, episodes.n_way), query), episodes)

    def on_features(self) -> "Matching":
        return Matching(Flatten(), self.config, self.context, self.loss)

    def _memory(self, features: Tensor, labels: Tensor, n_way: int) -> Memory:
        items = features if self.context is None else self.context.of_support(features)
        return Memory(items=items, labels=labels, n_way=n_way)

    def _votes(self, memory: Memory, queries: Tensor) -> Tensor:
        if self.context is not None:
            queries = self.context.of_queries(queries, memory.items)
        if self.config.distance == "l2":
            scores = -squared_distances(queries, memory.items)
        else:
            items = F.normalize(memory.items, dim=2)
            scores = self.config.cosine_scale * F.normalize(queries, dim=2) @ items.transpose(1, 2)
        return class_log_sums(scores.log_softmax(2), memory.labels, memory.n_way)


class FullContext(nn.Module):
    """Embeddings that depend on the whole support set: section 2.1.2 and the appendix of the paper.

    One deviation: the support items enter the recurrent network by the sum of their features, the smallest first, so
    that the order in which they are given makes no difference.
    """

    def __init__(self, n_features: int, n_steps: int) -> None:
        super().__init__()
        self.n_steps = n_steps
        self.support = nn.LSTM(n_features, n_features, batch_first=True, bidirectional=True)
        self.query = nn.LSTMCell(2 * n_features, n_features)

    def of_support(self, features: Tensor) -> Tensor:
        """g(x, S) (B, S, D) of features g' (B, S, D): plus the states of both directions."""
        order = features.detach().sum(2).argsort(dim=1)[:, :, None].expand(features.shape)
        states: Tensor = self.support(features.gather(1, order))[0].unflatten(2, (2, -1)).sum(2)
        return features + torch.zeros_like(states).scatter(1, order, states)

    def of_queries(self, features: Tensor, items: Tensor) -> Tensor:
        """f(x, S) (B, Q, D) of features f' (B, Q, D): read from items g (B, S, D) in `n_steps` steps."""
        flat = features.flatten(0, 1)
        hidden, cell = torch.zeros_like(flat), torch.zeros_like(flat)
        for _ in range(self.n_steps):
            attention = (hidden.view(features.shape) @ items.transpose(1, 2)).softmax(2)
            read = (attention @ items).flatten(0, 1)
            hidden, cell = self.query(torch.cat([flat, read], dim=1), (hidden, cell))
            hidden = hidden + flat
        return hidden.view(features.shape)
