"""A variational autoencoder of features, given their class: what it samples is added to the support set.

Shapes: B episodes, S support items, Q query items, N way, D features, G generated per class, Z latent numbers.
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

_SAMPLED, _ENCODED = 29, 31  # streams of an episode's draws


@settings(frozen=True, kw_only=True, config=STRICT)
class FeatureVAEConfig:
    """`generated` features are sampled for each class, from `latent` numbers; `beta` is the weight of the bound."""

    name: Literal["feature_vae"] = "feature_vae"
    generated: Annotated[int, Field(ge=1)] = 5
    latent: Annotated[int, Field(ge=1)] = 16
    beta: Annotated[float, Field(gt=0)] = 0.01

    about: ClassVar[About] = About(
        use="as hallucinator, where what is generated is to look like features of real items",
        cost="trains like protonet, with two small networks on the features; an answer needs one of them",
        source="Xian et al. 2019",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "FeatureVAE":
        return FeatureVAE(backbone, self, ConditionalVAE(backbone.n_features, self.latent), loss)


class FeatureVAE(MetaLearner[Tensor]):
    """More features of each class are sampled from a model of how features lie about the mean of their class.

    The conditional autoencoder of Xian, Sharma, Schiele and Akata, "f-VAEGAN-D2: A Feature Generating Framework for
    Any-Shot Learning", 2019, section 3.1, equation 1 without its critic, in the line of Schönfeld et al., "Generalized
    Zero- and Few-Shot Learning via Aligned Variational Autoencoders", 2019. A class is given by the mean of its support
    features instead of by attributes, and what is generated joins the support set of Prototypical Networks instead of
    the training set of a classifier. The loss is that of the queries plus `beta` times the negative bound of the
    queries' features, whose decoder has unit variance.

    Deviations: the loss of the queries trains the decoder too; features are taken as they are for the bound, which so
    has no say in them; the noise that is sampled from is the same for all classes of an episode, so that their numbers
    do not matter. It is drawn from an episode's key in training, and the same for every episode outside training, so
    that an answer is the same again.

    In training the features are normalised by the episode's own items, outside training by population statistics.
    """

    def __init__(
        self,
        backbone: nn.Module,
        config: FeatureVAEConfig,
        vae: "ConditionalVAE",
        loss: EpisodeLoss = query_cross_entropy,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.vae = vae
        self.loss = loss

    def adapt(self, support: Support) -> Tensor:
        """Prototypes (B, N, D) of the support items and of what is sampled for their class."""
        features = embed_alone(self.backbone, support.x)
        return self._prototypes(features, support.y, support.n_way, fixed_keys(features))

    def classify(self, adapted: Tensor, query_x: Tensor) -> Tensor:
        return -squared_distances(embed_alone(self.backbone, query_x), adapted)

    def meta_loss(self, episodes: EpisodeBatch, done: float = 0.0) -> Tensor:
        support, query = embed_jointly(self.backbone, episodes)
        with full_precision(query):
            centres = self._prototypes(support, episodes.support_y, episodes.n_way, episodes.keys)
            loss = self.loss(-squared_distances(query, centres), episodes)
            return loss + self.config.beta * self._negative_bound(support.detach(), query.detach(), episodes)

    def on_features(self) -> "FeatureVAE":
        return FeatureVAE(Flatten(), self.config, self.vae, self.loss)

    def _prototypes(self, features: Tensor, labels: Tensor, n_way: int, keys: Tensor) -> Tensor:
        n_draws = self.config.generated
        noise = gaussian(keys, _SAMPLED, (n_draws, self.config.latent), like=features)
        means = prototypes(features, labels, n_way).repeat_interleave(n_draws, dim=1)
        more = self.vae.decoded(noise.repeat(1, n_way, 1), means)
        labels_of_more = torch.arange(n_way, device=labels.device).repeat_interleave(n_draws).expand(len(labels), -1)
        return prototypes(torch.cat([features, more], dim=1), torch.cat([labels, labels_of_more], dim=1), n_way)

    def _negative_bound(self, support: Tensor, query: Tensor, episodes: EpisodeBatch) -> Tensor:
        """(B,): mean over the queries of what their reconstruction and their latent numbers cost, in nats."""
        means = prototypes(support, episodes.support_y, episodes.n_way)
        of_query = means.gather(1, episodes.query_y[:, :, None].expand(query.shape))
        noise = gaussian(episodes.keys, _ENCODED, (query.shape[1], self.config.latent), like=query)
        return self.vae.negative_bound(query, of_query, noise)


class ConditionalVAE(nn.Module):
    """Kingma and Welling, "Auto-Encoding Variational Bayes", 2014, appendix B, given the mean of a class.

    One hidden layer each way. The decoder adds to the mean of the class.
    """

    def __init__(self, n_features: int, n_latent: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(2 * n_features, n_features), nn.ReLU(), nn.Linear(n_features, 2 * n_latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(n_latent + n_features, n_features), nn.ReLU(), nn.Linear(n_features, n_features)
        )

    def decoded(self, latent: Tensor, means: Tensor) -> Tensor:
        """Features (B, I, D) of latent numbers (B, I, Z), each given the mean of its class (B, I, D)."""
        added: Tensor = self.decoder(torch.cat([latent, means], dim=2))
        return means + added

    def negative_bound(self, features: Tensor, means: Tensor, noise: Tensor) -> Tensor:
        """(B,) of features (B, I, D) of classes with means (B, I, D), with noise (B, I, Z); without its constant."""
        mean, log_var = self.encoder(torch.cat([features, means], dim=2)).chunk(2, dim=2)
        latent = mean + noise * (log_var / 2).exp()
        of_reconstruction: Tensor = (features - self.decoded(latent, means)).square().sum(2) / 2
        divergence: Tensor = (mean.square() + log_var.exp() - 1 - log_var).sum(2) / 2
        return (of_reconstruction + divergence).mean(1)
