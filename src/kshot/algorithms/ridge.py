"""Ridge regression to the labels, in closed form.

Shapes: B episodes, S support items, N way, D features, C classes of the training.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.algorithms.learner import About, Problem, TransferLearner, embed_alone
from kshot.algorithms.maths.heads import LinearHead, class_head, class_logits
from kshot.algorithms.maths.losses import EpisodeLoss, one_hot, query_cross_entropy
from kshot.algorithms.maths.regularised import times_inverse
from kshot.backbones.contract import Backbone, Flatten
from kshot.episodes.episode import Support
from kshot.settings import STRICT

SCALE = 10.0  # of the logits: what R2D2 starts from


@settings(frozen=True, kw_only=True, config=STRICT)
class RidgeConfig:
    name: Literal["ridge"] = "ridge"
    penalty: Annotated[float, Field(gt=0)] = 1.0  # in mean squared distances of support features from their mean

    about: ClassVar[About] = About(
        use="a frozen encoder and five examples per class or more",
        cost="ordinary training, or none; one linear system per support set",
        source="Bertinetto et al. 2019",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "Ridge":
        return Ridge(backbone, self, class_head(backbone.n_features, problem.n_train_classes))


class Ridge(TransferLearner[LinearHead]):
    """A linear map is fitted to the labels of the support set by least squares with a penalty.

    The base learner of Bertinetto, Henriques, Torr and Vedaldi, "Meta-learning with differentiable closed-form
    solvers", 2019 (R2D2), on a backbone of ordinary training instead of a meta-trained one, with three deviations:
    features have unit length; the bias is fitted, by centring features and labels, instead of penalised; and the
    penalty is not learned, but a multiple of the mean squared distance of the support features from their mean, so
    that it means the same for every number of items and features.
    """

    def __init__(self, backbone: nn.Module, config: RidgeConfig, class_head: nn.Linear | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.class_head = class_head

    def adapt(self, support: Support) -> LinearHead:
        features = F.normalize(embed_alone(self.backbone, support.x), dim=2)
        targets = one_hot(support.y, support.n_way, like=features)
        mean, target_mean = features.mean(1, keepdim=True), targets.mean(1, keepdim=True)
        rows = features - mean
        spread = rows.square().sum((1, 2)) / rows.shape[1]
        penalty = (self.config.penalty * spread).clamp_min(torch.finfo(rows.dtype).eps)
        weight = SCALE * times_inverse((targets - target_mean).transpose(1, 2) @ rows, rows, penalty)
        bias = SCALE * target_mean - mean @ weight.transpose(1, 2)
        return LinearHead(weight=weight, bias=bias[:, 0])

    def classify(self, adapted: LinearHead, query_x: Tensor) -> Tensor:
        return adapted.logits(F.normalize(embed_alone(self.backbone, query_x), dim=2))

    def class_logits(self, items: Tensor) -> Tensor:
        return class_logits(self.backbone, self.class_head, items)

    def on_features(self) -> "Ridge":
        return Ridge(Flatten(), self.config)
