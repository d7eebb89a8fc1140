"""ANIL: the inner loop of MAML on the head alone.

Shapes: B episodes, S support items, Q query items, N way, D features.
"""

from copy import copy
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn

from kshot.algorithms.learner import About, MetaLearner, Problem, embed_alone, embed_jointly
from kshot.algorithms.maths.heads import LinearHead, check_max_way
from kshot.algorithms.maths.losses import EpisodeLoss, full_precision, one_hot, query_cross_entropy
from kshot.backbones.contract import Backbone, Flatten
from kshot.episodes.episode import EpisodeBatch, Support
from kshot.settings import STRICT


@settings(frozen=True, kw_only=True, config=STRICT)
class ANILConfig:
    name: Literal["anil"] = "anil"
    inner_lr: Annotated[float, Field(gt=0)] = 0.4
    inner_steps: Annotated[int, Field(ge=1)] = 1
    eval_inner_steps: Annotated[int, Field(ge=1)] = 10
    first_order: bool = False

    about: ClassVar[About] = About(
        use="as maml, where the features can stay as they are",
        cost="trains nearly like protonet; an answer takes gradient steps on the head alone",
        source="Raghu et al. 2020",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "ANIL":
        return ANIL(backbone, self, n_features=backbone.n_features, n_way=problem.train_shape.n_way, loss=loss)


class ANIL(MetaLearner[LinearHead]):
    """A few steps of gradient descent fit a linear head to the support set; the backbone stays as it is.

    Raghu, Raghu, Bengio and Vinyals, "Rapid Learning or Feature Reuse? Towards Understanding the
    Effectiveness of MAML", 2020, section 4.

    The gradient of softmax regression is written out, so that all episodes adapt in a few matrix products.
    In training the features are normalised by the episode's own images, as in the authors' code; outside
    training by population statistics, so that a prediction depends on no other query.
    """

    def __init__(
        self,
        backbone: nn.Module,
        config: ANILConfig,
        *,
        n_features: int,
        n_way: int,
        loss: EpisodeLoss = query_cross_entropy,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(n_features, n_way)
        self.config = config
        self.loss = loss
        self.max_way = n_way
        self.inner_steps = config.eval_inner_steps

    def adapt(self, support: Support) -> LinearHead:
        return self._inner_loop(embed_alone(self.backbone, support.x), support.y, support.n_way, self.inner_steps)

    def classify(self, adapted: LinearHead, query_x: Tensor) -> Tensor:
        return adapted.logits(embed_alone(self.backbone, query_x))

    def meta_loss(self, episodes: EpisodeBatch, done: float = 0.0) -> Tensor:
        support, query = embed_jointly(self.backbone, episodes)
        with full_precision(query):
            adapted = self._inner_loop(support, episodes.support_y, episodes.n_way, self.config.inner_steps)
            return self.loss(adapted.logits(query), episodes)

    def on_features(self) -> "ANIL":
        n_way, n_features = self.head.weight.shape
        learner = ANIL(Flatten(), self.config, n_features=n_features, n_way=n_way, loss=self.loss)
        learner.head, learner.inner_steps = self.head, self.inner_steps
        return learner

    def with_inner_steps(self, n_steps: int) -> "ANIL":
        other = copy(self)
        other.inner_steps = n_steps
        return other

    def _inner_loop(self, features: Tensor, labels: Tensor, n_way: int, n_steps: int) -> LinearHead:
        """Heads after `n_steps` of gradient descent from features (B, S, D) and labels (B, S)."""
        check_max_way("ANIL", n_way, self.head.out_features)
        n_episodes, n_support = labels.shape
        targets = one_hot(labels, n_way, like=features)
        head = LinearHead(
            weight=self.head.weight[:n_way].expand(n_episodes, -1, -1),
            bias=self.head.bias[:n_way].expand(n_episodes, -1),
        )
        for _ in range(n_steps):
            error = (torch.softmax(head.logits(features), dim=2) - targets) / n_support  # (B, S, N)
            weight_step, bias_step = error.transpose(1, 2) @ features, error.sum(1)
            if self.config.first_order:
                weight_step, bias_step = weight_step.detach(), bias_step.detach()
            head = LinearHead(
                weight=head.weight - self.config.inner_lr * weight_step,
                bias=head.bias - self.config.inner_lr * bias_step,
            )
        return head
