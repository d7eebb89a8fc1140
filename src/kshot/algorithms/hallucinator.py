"""Learned hallucination: a generator adds support features before the class means are taken.

Shapes: B episodes, S support items, Q query items, N way, D features, G generated per support item, Z numbers of noise.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn

from kshot.algorithms.learner import About, MetaLearner, Problem, embed_alone, embed_jointly
from kshot.algorithms.maths.distances import prototypes, squared_distances
from kshot.algorithms.maths.losses import EpisodeLoss, full_precision, query_cross_entropy
from kshot.algorithms.maths.noise import fixed_keys, gaussian
from kshot.backbones.contract import Backbone, Flatten
from kshot.episodes.episode import EpisodeBatch, Support
from kshot.settings import STRICT

_STREAM = 23  # of an episode's draws
_LITTLE = 0.1  # of the usual size: what the last layer starts with


@settings(frozen=True, kw_only=True, config=STRICT)
class HallucinatorConfig:
    """`generated` features are made of each support item, from as many draws of `noise` numbers."""

    name: Literal["hallucinator"] = "hallucinator"
    generated: Annotated[int, Field(ge=1)] = 5
    noise: Annotated[int, Field(ge=1)] = 16

    about: ClassVar[About] = About(
        use="classes that all vary alike, with one example each, and many classes to learn that from",
        cost="trains like protonet, with a small network on the support features; an answer needs that too",
        source="Wang et al. 2018",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "Hallucinator":
        return Hallucinator(backbone, self, Generator(backbone.n_features, self.noise), loss)


class Hallucinator(MetaLearner[Tensor]):
    """A small network makes more examples of each class from one, and is trained by what they do to the answers.

    Wang, Girshick, Hebert and Hariharan, "Low-Shot Learning from Imaginary Data", 2018, section 4, with Prototypical
    Networks as the learner: the generator, of three layers with ReLU, is trained through the learner by the loss of the
    queries, and has no other aim. Deviations: every support item is a seed, and with the same noise, so that neither
    the order of the items nor the numbers of the classes matter, where the paper draws both; the generator's result is
    added to the seed, where the paper starts its layers as identities, so that it copies at first; and the backbone is
    trained too unless it is frozen. Noise is drawn from an episode's key in training. Outside training it is the same
    for every episode, so that an answer is the same again.

    In training the features are normalised by the episode's own items, outside training by population statistics.
    """

    def __init__(
        self,
        backbone: nn.Module,
        config: HallucinatorConfig,
        generator: "Generator",
        loss: EpisodeLoss = query_cross_entropy,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.generator = generator
        self.loss = loss

    def adapt(self, support: Support) -> Tensor:
        """Prototypes (B, N, D) of the support items and those that are made of them."""
        features = embed_alone(self.backbone, support.x)
        return self._prototypes(features, support.y, support.n_way, fixed_keys(features))

    def classify(self, adapted: Tensor, query_x: Tensor) -> Tensor:
        return -squared_distances(embed_alone(self.backbone, query_x), adapted)

    def meta_loss(self, episodes: EpisodeBatch, done: float = 0.0) -> Tensor:
        support, query = embed_jointly(self.backbone, episodes)
        with full_precision(query):
            centres = self._prototypes(support, episodes.support_y, episodes.n_way, episodes.keys)
            return self.loss(-squared_distances(query, centres), episodes)

    def on_features(self) -> "Hallucinator":
        return Hallucinator(Flatten(), self.config, self.generator, self.loss)

    def _prototypes(self, features: Tensor, labels: Tensor, n_way: int, keys: Tensor) -> Tensor:
        noise = gaussian(keys, _STREAM, (self.config.generated, self.config.noise), like=features)
        more: Tensor = self.generator(features, noise)
        labels_of_more = labels.repeat_interleave(self.config.generated, dim=1)
        return prototypes(torch.cat([features, more], dim=1), torch.cat([labels, labels_of_more], dim=1), n_way)


class Generator(nn.Module):
    """Features (B, S, D) and noise (B, G, Z) -> features (B, S * G, D), those of one seed beside each other."""

    def __init__(self, n_features: int, n_noise: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(n_features + n_noise, n_features),
            nn.ReLU(),
            nn.Linear(n_features, n_features),
            nn.ReLU(),
            nn.Linear(n_features, n_features),
        )
        with torch.no_grad():
            for parameter in self.layers[-1].parameters():
                parameter.mul_(_LITTLE)

    def forward(self, seeds: Tensor, noise: Tensor) -> Tensor:
        n_seeds, n_draws = seeds.shape[1], noise.shape[1]
        each_seed = seeds.repeat_interleave(n_draws, dim=1)
        added: Tensor = self.layers(torch.cat([each_seed, noise.repeat(1, n_seeds, 1)], dim=2))
        return each_seed + added
