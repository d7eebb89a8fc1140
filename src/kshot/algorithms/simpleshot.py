"""SimpleShot: nearest centroids of centred features of unit length.

Shapes: B episodes, N way, D features, C classes of the training.
"""

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.algorithms.learner import About, Problem, TransferLearner, embed_alone
from kshot.algorithms.maths.distances import prototypes, squared_distances
from kshot.algorithms.maths.heads import class_head, class_logits
from kshot.algorithms.maths.losses import EpisodeLoss, query_cross_entropy
from kshot.backbones.contract import Backbone, Flatten
from kshot.episodes.episode import Support
from kshot.settings import STRICT


@settings(frozen=True, kw_only=True, config=STRICT)
class SimpleShotConfig:
    name: Literal["simpleshot"] = "simpleshot"

    about: ClassVar[About] = About(
        use="a frozen encoder and one example per class",
        cost="ordinary training, or none; an answer is one mean per class",
        source="Wang et al. 2019",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "SimpleShot":
        centre = torch.zeros(backbone.n_features)
        return SimpleShot(backbone, centre, class_head(backbone.n_features, problem.n_train_classes))


class SimpleShot(TransferLearner[Tensor]):
    """A query belongs to the nearest class mean, once features are centred and brought to unit length.

    Wang, Chao, Weinberger and van der Maaten, "SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot
    Learning", 2019, section 3, the transformation that they call CL2N, with squared Euclidean distance.

    `centre` (D,) is the mean feature of the meta_train items. The paper takes all of them; here those that set the
    population statistics.
    """

    def __init__(self, backbone: nn.Module, centre: Tensor, class_head: nn.Linear | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.centre: Tensor
        self.register_buffer("centre", centre)
        self.class_head = class_head

    def adapt(self, support: Support) -> Tensor:
        """Prototypes (B, N, D)."""
        return prototypes(self._transformed(support.x), support.y, support.n_way)

    def classify(self, adapted: Tensor, query_x: Tensor) -> Tensor:
        return -squared_distances(self._transformed(query_x), adapted)

    def class_logits(self, items: Tensor) -> Tensor:
        return class_logits(self.backbone, self.class_head, items)

    @torch.no_grad()
    def set_centre(self, batches: Iterable[Tensor]) -> None:
        total, n_items = torch.zeros_like(self.centre), 0
        for items in batches:
            total += self.backbone(items, None).sum(0)
            n_items += len(items)
        self.centre.copy_(total / n_items)

    def on_features(self) -> "SimpleShot":
        return SimpleShot(Flatten(), self.centre)

    def _transformed(self, items: Tensor) -> Tensor:
        return F.normalize(embed_alone(self.backbone, items) - self.centre, dim=2)
