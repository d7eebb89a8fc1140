"""VERSA: a network that says how sure it is of the classifier it makes.

Shapes: B episodes, S support items, Q query items, N way, D features, L samples.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn

from kshot.algorithms.learner import About, MetaLearner, Problem, embed_alone, embed_jointly
from kshot.algorithms.maths.distances import prototypes
from kshot.algorithms.maths.heads import LinearHead
from kshot.algorithms.maths.losses import EpisodeLoss, full_precision, query_cross_entropy
from kshot.algorithms.maths.mixtures import log_mean_probability
from kshot.algorithms.maths.noise import standard_normal
from kshot.backbones.contract import Backbone, Flatten
from kshot.episodes.episode import EpisodeBatch, Support
from kshot.settings import STRICT


@settings(frozen=True, kw_only=True, config=STRICT)
class VERSAConfig:
    name: Literal["versa"] = "versa"
    samples: Annotated[int, Field(ge=1)] = 10  # classifiers that are drawn for an episode
    log_variance: float = -4.0  # of the weights and biases of a class, where learning starts

    about: ClassVar[About] = About(
        use="where a confidence has to be believed, and any number of classes at test",
        cost="trains like protonet; a query is given to several drawn classifiers, a matrix product each",
        source="Gordon et al. 2019",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "VERSA":
        return VERSA(backbone, self, Amortisation(backbone.n_features, self.log_variance), loss)


class VERSA(MetaLearner[tuple[LinearHead, ...]]):
    """From the mean feature of a class a network gives a distribution of its weights; answers are means over draws.

    Gordon, Bronskill, Bauer, Nowozin and Turner, "Meta-Learning Probabilistic Inference for Prediction", 2019, section
    3: the posterior of a linear classifier is a product over the classes, each a normal distribution that depends on
    the class's own items. The loss is that of section 2.2, the cross-entropy of the mean predicted probability over L
    samples; there is no divergence to a prior in it. `Amortisation` is the network of the authors' code.

    Deviations: a classifier is drawn once for all queries of an episode, as the posterior predictive has it, where the
    authors' code draws the logits of each query (local reparameterisation); outside training the draws are those of one
    fixed key, so that answers are repeatable; the first draw goes to the class whose mean feature has the smallest sum,
    and so on, so that relabelling the classes relabels the answers; no dropout; and log-variances start at
    `log_variance`, not at about 0, where noise drowns the logits.

    In training the features are normalised by the episode's own items, outside training by population statistics.
    """

    def __init__(
        self,
        backbone: nn.Module,
        config: VERSAConfig,
        amortisation: "Amortisation",
        loss: EpisodeLoss = query_cross_entropy,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.amortisation = amortisation
        self.loss = loss

    def adapt(self, support: Support) -> tuple[LinearHead, ...]:
        """L classifiers."""
        features = embed_alone(self.backbone, support.x)
        return self._drawn(features, support.y, support.n_way, keys=torch.zeros_like(support.y[:, 0]))

    def classify(self, adapted: tuple[LinearHead, ...], query_x: Tensor) -> Tensor:
        return self._logits(adapted, embed_alone(self.backbone, query_x))

    def meta_loss(self, episodes: EpisodeBatch, done: float = 0.0) -> Tensor:
        support, query = embed_jointly(self.backbone, episodes)
        with full_precision(query):
            heads = self._drawn(support, episodes.support_y, episodes.n_way, keys=episodes.keys)
            return self.loss(self._logits(heads, query), episodes)

    def on_features(self) -> "VERSA":
        return VERSA(Flatten(), self.config, self.amortisation, self.loss)

    def _logits(self, heads: tuple[LinearHead, ...], features: Tensor) -> Tensor:
        return log_mean_probability([head.logits(features) for head in heads])

    def _drawn(self, features: Tensor, labels: Tensor, n_way: int, *, keys: Tensor) -> tuple[LinearHead, ...]:
        classes = prototypes(features, labels, n_way)
        mean, deviation = self.amortisation(classes)
        noise = standard_normal(keys, (self.config.samples, *mean.shape[1:]), like=mean)
        rank = classes.detach().sum(2).argsort(dim=1, stable=True).argsort(dim=1)
        noise = noise.gather(2, rank[:, None, :, None].expand(noise.shape))
        drawn = mean[:, None] + deviation[:, None] * noise  # (B, L, N, D + 1)
        return tuple(LinearHead(weight=one[:, :, :-1], bias=one[:, :, -1]) for one in drawn.unbind(1))


class Amortisation(nn.Module):
    """Mean features (B, N, D) -> means and standard deviations of weights and bias, the last of them, (B, N, D + 1).

    Four networks with two hidden layers of D exponential linear units each. The means have no constant of their own: it
    would be the same for all classes, and a softmax does not see it.
    """

    def __init__(self, n_features: int, log_variance: float) -> None:
        super().__init__()
        self.weight_mean = _network(n_features, n_features)
        self.weight_log_variance = _network(n_features, n_features, constant=log_variance)
        self.bias_mean = _network(n_features, 1)
        self.bias_log_variance = _network(n_features, 1, constant=log_variance)

    def forward(self, classes: Tensor) -> tuple[Tensor, Tensor]:
        mean = torch.cat([self.weight_mean(classes), self.bias_mean(classes)], dim=2)
        log_variance = torch.cat([self.weight_log_variance(classes), self.bias_log_variance(classes)], dim=2)
        return mean, torch.exp(log_variance / 2)


def _network(n_inputs: int, n_outputs: int, *, constant: float | None = None) -> nn.Sequential:
    """`constant` is the one of its outputs where learning starts; None for a network without."""
    last = nn.Linear(n_inputs, n_outputs, bias=constant is not None)
    if constant is not None:
        nn.init.constant_(last.bias, constant)
    return nn.Sequential(nn.Linear(n_inputs, n_inputs), nn.ELU(), nn.Linear(n_inputs, n_inputs), nn.ELU(), last)
