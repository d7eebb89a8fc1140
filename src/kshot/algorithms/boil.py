"""BOIL: the inner loop of MAML on the body alone.

Shapes: B episodes, S support items, Q query items, N way.
"""

from copy import copy
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn

from kshot.algorithms.learner import About, MetaLearner, Problem
from kshot.algorithms.maths.fast_weights import Weights, descend
from kshot.algorithms.maths.losses import EpisodeLoss, query_cross_entropy
from kshot.algorithms.maths.network import HEAD, AdaptedWeights, Network
from kshot.backbones.contract import Backbone, has_nothing_to_train
from kshot.episodes.episode import EpisodeBatch, Support
from kshot.errors import ConfigError
from kshot.settings import STRICT


@settings(frozen=True, kw_only=True, config=STRICT)
class BOILConfig:
    name: Literal["boil"] = "boil"
    inner_lr: Annotated[float, Field(gt=0)] = 0.5  # of the body; the head's is 0
    inner_steps: Annotated[int, Field(ge=1)] = 1
    eval_inner_steps: Annotated[int, Field(ge=1)] = 1
    first_order: bool = False
    query_statistics: bool = True  # in training, normalise the queries by the queries (transductive)

    about: ClassVar[About] = About(
        use="as maml, where the features have to change with the task more than the rule on top of them",
        cost="derivatives of gradient steps: like maml's; an answer takes steps on the backbone alone",
        source="Oh et al. 2021",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "BOIL":
        if has_nothing_to_train(backbone):
            raise ConfigError(
                "boil adapts the backbone, and all of it is frozen; need a part that is trained; "
                "next: set backbone.freeze to less, or algorithm: {name: anil}"
            )
        return BOIL(backbone, self, n_features=backbone.n_features, n_way=problem.train_shape.n_way, loss=loss)


class BOIL(MetaLearner[AdaptedWeights]):
    """Gradient descent on the support set adapts the backbone towards a head that stays as it is: ANIL turned round.

    Oh, Yoo, Kim and Yun, "BOIL: Towards Representation Change for Few-shot Learning", 2021, section 3.1: MAML's inner
    loop with a rate of 0 for the head, which the outer loop trains. One deviation: queries can be normalised by the
    support set, as for MAML.
    """

    needs_population_statistics = False
    episodes_at_once = 4

    def __init__(
        self,
        backbone: nn.Module,
        config: BOILConfig,
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

    def with_query_statistics(self, on: bool) -> "BOIL":
        other = copy(self)
        other.query_statistics = on
        return other

    def with_inner_steps(self, n_steps: int) -> "BOIL":
        other = copy(self)
        other.inner_steps = n_steps
        return other

    @property
    def _network(self) -> Network:
        return Network(algorithm="BOIL", backbone=self.backbone, head=self.head)

    def _adapted(self, support: Support, n_steps: int) -> Weights:
        """The weights that are trained, those of the body after `n_steps` of gradient descent on the support set."""
        network = self._network
        start = network.trained(len(support.x), support.n_way)
        head = {name: start.pop(name) for name in HEAD if name in start}

        def loss(body: Weights) -> Tensor:
            return network.support_loss(body | head, support)

        second_order = not self.config.first_order
        body = descend(loss, start, rate=self.config.inner_lr, n_steps=n_steps, second_order=second_order)
        return body | head
