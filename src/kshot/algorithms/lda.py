"""Linear discriminant analysis with a shrunk covariance.

Shapes: B episodes, S support items, N way, D features, C classes of the training.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.algorithms.learner import About, Problem, TransferLearner, embed_alone
from kshot.algorithms.maths.distances import prototypes
from kshot.algorithms.maths.heads import LinearHead, class_head, class_logits
from kshot.algorithms.maths.losses import EpisodeLoss, one_hot, query_cross_entropy
from kshot.algorithms.maths.regularised import times_inverse
from kshot.backbones.contract import Backbone, Flatten
from kshot.episodes.episode import Support
from kshot.settings import STRICT


@settings(frozen=True, kw_only=True, config=STRICT)
class LDAConfig:
    name: Literal["lda"] = "lda"
    shrinkage: Annotated[float, Field(gt=0, le=1)] = 0.5  # 1: nearest centroid

    about: ClassVar[About] = About(
        use="a frozen encoder and several examples per class, whose features spread alike",
        cost="ordinary training, or none; one linear system per support set",
        source="Ledoit and Wolf 2004",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "LDA":
        return LDA(backbone, self, class_head(backbone.n_features, problem.n_train_classes))


class LDA(TransferLearner[LinearHead]):
    """Classes are clouds of one common shape, and a query belongs to the one under which it is most likely.

    Hastie, Tibshirani and Friedman, "The Elements of Statistical Learning", 2009, section 4.3, with the covariance
    shrunk to a multiple of the identity by a fixed amount: Ledoit and Wolf, "A well-conditioned estimator for
    large-dimensional covariance matrices", 2004. Features have unit length, and all classes are equally likely,
    however many items they have. With one item per class there is no covariance: then the identity has the variance of
    all items about their mean, and the nearest centroid wins.
    """

    def __init__(self, backbone: nn.Module, config: LDAConfig, class_head: nn.Linear | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.class_head = class_head

    def adapt(self, support: Support) -> LinearHead:
        features = F.normalize(embed_alone(self.backbone, support.x), dim=2)
        means = prototypes(features, support.y, support.n_way)
        rows = features - one_hot(support.y, support.n_way, like=features) @ means
        n_support, n_features = rows.shape[1:]
        smallest = torch.finfo(rows.dtype).eps
        within = rows.square().sum((1, 2))
        total = (features - features.mean(1, keepdim=True)).square().sum((1, 2)).clamp_min(smallest)
        spread = torch.where(within > smallest * total, within, total) / (n_support * n_features)
        kept = ((1 - self.config.shrinkage) / n_support) ** 0.5
        weight = times_inverse(means, kept * rows, self.config.shrinkage * spread)
        return LinearHead(weight=weight, bias=-(weight * means).sum(2) / 2)

    def classify(self, adapted: LinearHead, query_x: Tensor) -> Tensor:
        return adapted.logits(F.normalize(embed_alone(self.backbone, query_x), dim=2))

    def class_logits(self, items: Tensor) -> Tensor:
        return class_logits(self.backbone, self.class_head, items)

    def on_features(self) -> "LDA":
        return LDA(Flatten(), self.config)
