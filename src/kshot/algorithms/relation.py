"""Relation Networks.

Shapes: B episodes, Q query items, N way, D features, (C, H, W) the map that the features are, F channels of a relation.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.algorithms.learner import About, MetaLearner, Problem, embed_alone, embed_jointly
from kshot.algorithms.maths.distances import prototypes
from kshot.algorithms.maths.losses import EpisodeLoss, full_precision, query_cross_entropy
from kshot.backbones.contract import Backbone, Flatten
from kshot.episodes.episode import EpisodeBatch, Support
from kshot.settings import STRICT

_HIDDEN = 8  # units before the score
_NUMBERS_AT_ONCE = 2**24  # of the largest activations of the pairs that are taken together


@settings(frozen=True, kw_only=True, config=STRICT)
class RelationConfig:
    name: Literal["relation"] = "relation"
    width: Annotated[int, Field(ge=1)] = 64  # channels of the relation module

    about: ClassVar[About] = About(
        use="classes that differ in ways that no fixed distance of features shows; feature maps rather than vectors",
        cost="a small network per pair of query and class: several times protonet's time with many classes",
        source="Sung et al. 2018",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "Relation":
        map_shape = backbone.map_shape or (backbone.n_features, 1, 1)
        return Relation(backbone, RelationModule(map_shape, self.width), loss)


class Relation(MetaLearner[Tensor]):
    """A small network learns to say how well a query fits a class, instead of a distance that is chosen.

    Sung, Yang, Zhang, Xiang, Torr and Hospedales, "Learning to Compare: Relation Network for Few-Shot Learning", 2018,
    section 3.2, equation 1, and the relation module of section 3.4. Where the backbone's features are a map the module
    is convolutional; otherwise, or with a map of one place, it is fully connected. The logits are the scores before the
    sigmoid. Equation 2 is `meta_train.loss: {name: squared_error}`; cross-entropy is the default of all learners.

    Deviations: the module normalises each pair alone (group normalisation with one group) and not over the pairs of
    the batch, so that a score depends on no other query and no running statistics of training episodes, which the
    authors' code avoids by never leaving training mode; a class of several shots is the mean of its maps, not their
    sum; the first convolution starts as one of the difference of the two maps, which is learned sooner; the last layer
    has no bias.
    """

    def __init__(self, backbone: nn.Module, module: "RelationModule", loss: EpisodeLoss = query_cross_entropy) -> None:
        super().__init__()
        self.backbone = backbone
        self.module = module
        self.loss = loss

    def adapt(self, support: Support) -> Tensor:
        """What the classes bring to each of their pairs (B, N, F, H, W)."""
        return self.module.of_classes(prototypes(embed_alone(self.backbone, support.x), support.y, support.n_way))

    def classify(self, adapted: Tensor, query_x: Tensor) -> Tensor:
        return self.module.scores(adapted, embed_alone(self.backbone, query_x))

    def meta_loss(self, episodes: EpisodeBatch, done: float = 0.0) -> Tensor:
        support, query = embed_jointly(self.backbone, episodes)
        with full_precision(query):
            classes = self.module.of_classes(prototypes(support, episodes.support_y, episodes.n_way))
            return self.loss(self.module.scores(classes, query), episodes)

    def on_features(self) -> "Relation":
        return Relation(Flatten(), self.module, self.loss)


class RelationModule(nn.Module):
    """Two blocks of convolution, normalisation, ReLU and pooling on the maps of a pair, and two linear layers.

    The first convolution is linear in the two maps of a pair, which the paper puts one behind the other. So it is
    applied to each class and each query once, and a pair is the sum. Blocks pool where there are two places or more in
    each direction.
    """

    def __init__(self, map_shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.map_shape = map_shape
        channels, *size = map_shape
        self.first_of_class = _convolution(channels, width, size)
        self.first_of_query = _convolution(channels, width, size)
        with torch.no_grad():
            self.first_of_query.weight.copy_(-self.first_of_class.weight)
        self.first_norm = nn.GroupNorm(1, width)
        size = _pooled(size)
        self.second = _convolution(width, width, size)
        self.second_norm = nn.GroupNorm(1, width)
        size = _pooled(size)
        self.hidden = nn.Linear(width * size[0] * size[1], _HIDDEN)
        self.score = nn.Linear(_HIDDEN, 1, bias=False)

    def of_classes(self, prototypes: Tensor) -> Tensor:
        """(B, N, F, H, W) of prototypes (B, N, D)."""
        return self._first(self.first_of_class, prototypes)

    def scores(self, classes: Tensor, query: Tensor) -> Tensor:
        """(B, Q, N) of classes (B, N, F, H, W) and features (B, Q, D)."""
        queries = self._first(self.first_of_query, query)
        n_query, n_way = queries.shape[1], classes.shape[1]
        of_one = n_query * classes[0].numel()
        at_once = max(1, _NUMBERS_AT_ONCE // max(1, of_one)) if len(classes) > 1 else 1
        parts = zip(torch.split(classes, at_once), torch.split(queries, at_once), strict=True)
        pairs = ((c[:, None] + q[:, :, None]).flatten(0, 2) for c, q in parts)
        return torch.cat([self._relations(pair) for pair in pairs]).view(-1, n_query, n_way)

    def _first(self, convolution: nn.Conv2d, features: Tensor) -> Tensor:
        maps: Tensor = convolution(features.reshape(-1, *self.map_shape))
        return maps.view(*features.shape[:2], *maps.shape[1:])

    def _relations(self, x: Tensor) -> Tensor:
        x = _pool(F.relu(self.first_norm(x)))
        x = _pool(F.relu(self.second_norm(self.second(x))))
        relations: Tensor = self.score(F.relu(self.hidden(x.flatten(1))))
        return relations


def _convolution(inputs: int, outputs: int, size: list[int]) -> nn.Conv2d:
    """3x3 with padding; of one place only the centre of its kernel would ever be used."""
    side = 3 if max(size) > 1 else 1
    return nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)


def _pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2) if min(x.shape[2:]) > 1 else x


def _pooled(size: list[int]) -> list[int]:
    return [side // 2 for side in size] if min(size) > 1 else size
