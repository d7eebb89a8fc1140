"""TIM: class weights that are fitted to the queries of an episode too, all of them at once.

Shapes: B episodes, S support items, Q query items, N way, D features, C classes of the training.
"""

from copy import copy
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.algorithms.learner import About, Problem, TransferLearner, embed_alone
from kshot.algorithms.maths.distances import prototypes, squared_distances
from kshot.algorithms.maths.heads import class_head, class_logits
from kshot.algorithms.maths.losses import EpisodeLoss, one_hot, query_cross_entropy
from kshot.backbones.contract import Backbone, Flatten
from kshot.episodes.episode import Support
from kshot.settings import STRICT


@settings(frozen=True, kw_only=True, config=STRICT)
class TIMConfig:
    """`support_weight` and `certainty_weight` are the paper's lambda and alpha, beside 1 for an even use of classes."""

    name: Literal["tim"] = "tim"
    steps: Annotated[int, Field(ge=1)] = 150
    temperature: Annotated[float, Field(gt=0)] = 15.0
    support_weight: Annotated[float, Field(gt=0)] = 0.1
    certainty_weight: Annotated[float, Field(ge=0)] = 0.1

    about: ClassVar[About] = About(
        use="an upper bound: what could be had if all queries of a problem came together, equally many of each class",
        cost="ordinary training, or none; 150 small steps per episode in the transductive mode, none where it serves",
        source="Boudiaf et al. 2020",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "TIM":
        return TIM(backbone, self, class_head(backbone.n_features, problem.n_train_classes))


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """What the fit to the queries begins with: features (B, S, D) and labels (B, S), class weights (B, N, D)."""

    features: Tensor
    labels: Tensor
    weights: Tensor


class TIM(TransferLearner[Fitting]):
    """The class weights move until each query is sure of its class, and the queries use all classes alike.

    Boudiaf, Masud, Rony, Dolz, Piantanida and Ben Ayed, "Transductive Information Maximization for Few-Shot
    Learning", 2020: the objective of section 3.2 on features of unit length, minimised by the alternating directions of
    section 3.3 (TIM-ADM), whose two updates are those of proposition 1. Weights of the terms, temperature and number
    of steps are those of the authors' code, and so is the start, the class means. Without a deviation.

    What it says of a query depends on the other queries, and on their spread over the classes: that the marginal of the
    labels is to be even helps where every class has as many queries, as in episodes that are drawn so. The
    non-transductive mode, which is served, is the start of the fit: the nearest class mean on features of unit length.
    """

    def __init__(self, backbone: nn.Module, config: TIMConfig, class_head: nn.Linear | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.class_head = class_head
        self.query_statistics = True

    def adapt(self, support: Support) -> Fitting:
        features = F.normalize(embed_alone(self.backbone, support.x), dim=2)
        weights = prototypes(features, support.y, support.n_way)
        return Fitting(features=features, labels=support.y, weights=weights)

    def classify(self, adapted: Fitting, query_x: Tensor) -> Tensor:
        queries = F.normalize(embed_alone(self.backbone, query_x), dim=2)
        weights = self.fitted(adapted, queries) if self.query_statistics else adapted.weights
        return self._logits(queries, weights)

    def class_logits(self, items: Tensor) -> Tensor:
        return class_logits(self.backbone, self.class_head, items)

    def on_features(self) -> "TIM":
        return TIM(Flatten(), self.config).with_query_statistics(self.query_statistics)

    def with_query_statistics(self, on: bool) -> "TIM":
        other = copy(self)
        other.query_statistics = on
        return other

    def fitted(self, start: Fitting, queries: Tensor) -> Tensor:
        """Class weights (B, N, D) after the steps on queries (B, Q, D) of unit length."""
        features, weights = start.features, start.weights
        labels = one_hot(start.labels, weights.shape[1], like=features)
        of_support = self.config.support_weight / (1 + self.config.certainty_weight)
        of_query = features.shape[1] / queries.shape[1]
        for _ in range(self.config.steps):
            logits = self._logits(queries, weights)
            latent = self._latent(logits.log_softmax(2))
            moved = of_support * _pull(features, labels, self._logits(features, weights).softmax(2), weights)
            moved = moved + of_query * _pull(queries, latent, logits.softmax(2), weights)
            weights = moved / (of_support * labels.sum(1) + of_query * latent.sum(1))[:, :, None]
        return weights

    def _latent(self, log_p: Tensor) -> Tensor:
        """The auxiliary assignments q (B, Q, N) of queries with log-probabilities (B, Q, N)."""
        sharper = (1 + self.config.certainty_weight) * log_p
        return (sharper - sharper.logsumexp(1, keepdim=True) / 2).softmax(2)

    def _logits(self, features: Tensor, weights: Tensor) -> Tensor:
        return -self.config.temperature / 2 * squared_distances(features, weights)


def _pull(items: Tensor, assigned: Tensor, p: Tensor, weights: Tensor) -> Tensor:
    """Sum over the items (B, I, D) of assigned * item + p * (weight - item), for each class (B, N, D)."""
    return (assigned - p).transpose(1, 2) @ items + p.sum(1)[:, :, None] * weights
