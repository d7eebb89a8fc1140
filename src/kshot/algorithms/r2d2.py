"""R2D2: ridge regression as the last layer, trained through.

Shapes: B episodes, S support items, Q query items, N way, D features.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn

from kshot.algorithms.learner import About, MetaLearner, Problem, embed_alone, embed_jointly
from kshot.algorithms.maths.heads import LinearHead
from kshot.algorithms.maths.losses import EpisodeLoss, full_precision, one_hot, query_cross_entropy
from kshot.algorithms.maths.regularised import times_inverse
from kshot.backbones.contract import Backbone, Flatten
from kshot.episodes.episode import EpisodeBatch, Support
from kshot.settings import STRICT


@settings(frozen=True, kw_only=True, config=STRICT)
class R2D2Config:
    """What training starts from: `penalty` per support item, and `scale` of the logits. Both are learned."""

    name: Literal["r2d2"] = "r2d2"
    penalty: Annotated[float, Field(gt=0)] = 1.0
    scale: Annotated[float, Field(gt=0)] = 10.0

    about: ClassVar[About] = About(
        use="features that are to be trained for ridge regression, with five examples per class or more",
        cost="trains like protonet; one linear system per support set",
        source="Bertinetto et al. 2019",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "R2D2":
        return R2D2(backbone, self, loss)


class R2D2(MetaLearner[LinearHead]):
    """The head is ridge regression on the support set, in closed form, and training goes through its solution.

    Bertinetto, Henriques, Torr and Vedaldi, "Meta-learning with differentiable closed-form solvers", 2019, section 3.2,
    equations 4 to 6: with fewer items than features the small system is solved, by the Woodbury identity. As in the
    authors' code, a feature of 1 is the bias, and the penalty is one per support item. Deviations: the penalty is
    learned as its logarithm, so that it stays positive; the learned shift of the logits is left out, for it is the same
    for all classes and a softmax does not see it; and the penalty starts from 1, not from the 50 of the authors'
    settings, with which the logits on Conv4's features begin near 0 (docs/log.md).

    In training the features are normalised by the episode's own items, as in the authors' code; outside training by
    population statistics, so that a prediction depends on no other query.
    """

    def __init__(self, backbone: nn.Module, config: R2D2Config, loss: EpisodeLoss = query_cross_entropy) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.loss = loss
        self.scale = nn.Parameter(torch.tensor(config.scale))
        self.log_penalty = nn.Parameter(torch.tensor(config.penalty).log())

    def adapt(self, support: Support) -> LinearHead:
        return self._fitted(embed_alone(self.backbone, support.x), support.y, support.n_way)

    def classify(self, adapted: LinearHead, query_x: Tensor) -> Tensor:
        return adapted.logits(embed_alone(self.backbone, query_x))

    def meta_loss(self, episodes: EpisodeBatch, done: float = 0.0) -> Tensor:
        support, query = embed_jointly(self.backbone, episodes)
        with full_precision(query):
            head = self._fitted(support, episodes.support_y, episodes.n_way)
            return self.loss(head.logits(query), episodes)

    def on_features(self) -> "R2D2":
        learner = R2D2(Flatten(), self.config, self.loss)
        learner.scale, learner.log_penalty = self.scale, self.log_penalty
        return learner

    def _fitted(self, features: Tensor, labels: Tensor, n_way: int) -> LinearHead:
        """The head fitted to features (B, S, D) and labels (B, S), with the scale in it."""
        n_episodes, n_support = labels.shape
        rows = torch.cat([features, torch.ones_like(features[:, :, :1])], dim=2)
        targets = one_hot(labels, n_way, like=features)
        penalty = (n_support * self.log_penalty.exp()).expand(n_episodes)
        weight = self.scale * times_inverse(targets.transpose(1, 2) @ rows, rows, penalty)  # (B, N, D + 1)
        return LinearHead(weight=weight[:, :, :-1], bias=weight[:, :, -1])
