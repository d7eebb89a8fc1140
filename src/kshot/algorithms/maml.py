"""Model-Agnostic Meta-Learning, second and first order.

Shapes: B episodes, S support items, Q query items, N way, D features.
"""

from copy import copy
from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn

from kshot.algorithms.learner import About, MetaLearner, Problem
from kshot.algorithms.maths.fast_weights import Weights, descend
from kshot.algorithms.maths.losses import EpisodeLoss, query_cross_entropy
from kshot.algorithms.maths.network import AdaptedWeights, Network
from kshot.backbones.contract import Backbone
from kshot.episodes.episode import EpisodeBatch, Support
from kshot.settings import STRICT


@settings(frozen=True, kw_only=True, config=STRICT)
class MAMLConfig:
    name: Literal["maml"] = "maml"
    inner_lr: Annotated[float, Field(gt=0)] = 0.4
    inner_steps: Annotated[int, Field(ge=1)] = 1
    eval_inner_steps: Annotated[int, Field(ge=1)] = 10
    first_order: bool = False
    query_statistics: bool = True  # in training, normalise the queries by the queries (transductive)

    about: ClassVar[About] = About(
        use="tasks that differ in more than their classes, such as in what a label means",
        cost="derivatives of gradient steps: several times protonet's; an answer takes steps on the whole network",
        source="Finn et al. 2017",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "MAML":
        return MAML(backbone, self, n_features=backbone.n_features, n_way=problem.train_shape.n_way, loss=loss)


class MAML(MetaLearner[AdaptedWeights]):
    """A few steps of gradient descent adapt all weights; training looks for weights from which they lead far.

    Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", 2017,
    algorithm 2; with `first_order`, section 5.2.

    The paper normalises queries by the statistics of all queries, which is transductive: `with_query_statistics` gives
    the same weights also with the statistics of the support set, where a prediction depends on no other query.

    The inner loop runs a few episodes side by side where the backbone can (`EpisodeWise`), else one by one.
    """

    needs_population_statistics = False
    episodes_at_once = 4

    def __init__(
        self,
        backbone: nn.Module,
        config: MAMLConfig,
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
        self.query_statistics = config.query_statistics

    def adapt(self, support: Support) -> AdaptedWeights:
        weights = self._adapted(support, self.inner_steps)
        return self._network.adapted(weights, support, query_statistics=self.query_statistics)

    def classify(self, adapted: AdaptedWeights, query_x: Tensor) -> Tensor:
        return self._network.classify(adapted, query_x, query_statistics=self.query_statistics)

    def meta_loss(self, episodes: EpisodeBatch, done: float = 0.0) -> Tensor:
        adapted = self._adapted(episodes.support, self.config.inner_steps)
        return self._network.query_losses(adapted, episodes, self.loss, query_statistics=self.query_statistics)

    def with_query_statistics(self, on: bool) -> "MAML":
        other = copy(self)
        other.query_statistics = on
        return other

    def with_inner_steps(self, n_steps: int) -> "MAML":
        other = copy(self)
        other.inner_steps = n_steps
        return other

    @property
    def _network(self) -> Network:
        return Network(algorithm="MAML", backbone=self.backbone, head=self.head)

    def _adapted(self, support: Support, n_steps: int) -> Weights:
        """The weights that are trained, after `n_steps` of gradient descent on the support set."""
        network = self._network
        return descend(
            partial(network.support_loss, support=support),
            network.trained(len(support.x), support.n_way),
            rate=self.config.inner_lr,
            n_steps=n_steps,
            second_order=not self.config.first_order,
        )
