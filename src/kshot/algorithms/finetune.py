"""Fine-tuning: gradient descent on the support set changes the backbone too, or a part of it.

Shapes: B episodes, I items, N way, D features, C classes of the training.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor, nn
from torch.nn import functional as F

from kshot.algorithms.learner import About, Problem, TransferLearner, embed_alone
from kshot.algorithms.maths.distances import prototypes
from kshot.algorithms.maths.fast_weights import Weights, descend, embed_under, for_each, of_episode
from kshot.algorithms.maths.heads import class_head, class_logits
from kshot.algorithms.maths.losses import EpisodeLoss, cross_entropy, query_cross_entropy
from kshot.backbones.contract import Backbone
from kshot.episodes.episode import Support
from kshot.errors import ConfigError
from kshot.settings import STRICT

_HEAD = "head"
_SCALE = 10.0  # of the cosines: PMF's


@settings(frozen=True, kw_only=True, config=STRICT)
class FinetuneConfig:
    name: Literal["finetune"] = "finetune"
    parts: tuple[str, ...] = ()  # how the names of the backbone's parameters begin that are tuned; none given: all
    steps: Annotated[int, Field(ge=1)] = 20
    learning_rates: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)] = (0.0, 0.001, 0.01)
    """Of several, the one with the best accuracy on meta_val is kept. Validations during training take the first."""

    about: ClassVar[About] = About(
        use="items unlike those of the training, and time for each new problem",
        cost="ordinary training, or none; the network is trained anew for every support set, about a second",
        source="Hu et al. 2022",
    )

    def build(self, backbone: Backbone, problem: Problem, loss: EpisodeLoss = query_cross_entropy) -> "Finetune":
        return Finetune(backbone, self, class_head(backbone.n_features, problem.n_train_classes))


@dataclass(frozen=True, kw_only=True)
class TunedWeights:
    """The tuned weights of B episodes, (B, *shape) by name: those of the backbone, and the head (B, N, D)."""

    weights: Weights


class Finetune(TransferLearner[TunedWeights]):
    """The backbone is trained further on the support set itself, with a head that starts from the class means.

    Features and head have unit length, and logits are cosines times 10. The head is that of Qi, Brown and Lowe,
    "Low-Shot Learning with Imprinted Weights", 2018, with their fine-tuning. That the learning rate is chosen on
    validation episodes, 0 among the choices, is from Hu et al., "Pushing the Limits of Simple Pipelines for Few-Shot
    Learning" (PMF), 2022, the fine-tuning of meta-testing. Two deviations from PMF: the support set is not augmented,
    so that the answer is the same again, and the steps are those of plain gradient descent.

    Population statistics normalise throughout and stay as they are: a prediction depends on no other query.
    """

    def __init__(self, backbone: nn.Module, config: FinetuneConfig, class_head: nn.Linear | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        self.class_head = class_head
        self.inner_steps = config.steps
        self.learning_rate: Tensor
        self.register_buffer("learning_rate", torch.tensor(config.learning_rates[0]))
        _check_parts(config.parts, [name for name, _ in backbone.named_parameters()])

    @property
    def choices(self) -> Sequence[float]:
        return self.config.learning_rates

    def choose(self, choice: float) -> None:
        self.learning_rate.fill_(choice)

    @torch.no_grad()
    def adapt(self, support: Support) -> TunedWeights:
        features = F.normalize(embed_alone(self.backbone, support.x), dim=2)
        weights = for_each(self._tuned(), len(support.x))
        weights[_HEAD] = prototypes(features, support.y, support.n_way)

        def loss(weights: Weights) -> Tensor:
            return cross_entropy(self._logits(weights, support.x), support.y).sum()

        rate = float(self.learning_rate)
        n_steps = self.inner_steps if rate > 0 else 0
        return TunedWeights(weights=descend(loss, weights, rate=rate, n_steps=n_steps, second_order=False))

    def classify(self, adapted: TunedWeights, query_x: Tensor) -> Tensor:
        logits = [self._logits(of_episode(adapted.weights, i), query[None]) for i, query in enumerate(query_x)]
        return torch.cat(logits)

    def class_logits(self, items: Tensor) -> Tensor:
        return class_logits(self.backbone, self.class_head, items)

    def with_inner_steps(self, n_steps: int) -> "Finetune":
        other = copy(self)
        other.inner_steps = n_steps
        return other

    def _tuned(self) -> Weights:
        """The parameters of the backbone that are tuned. A frozen one never is."""
        return {
            name: parameter
            for name, parameter in self.backbone.named_parameters()
            if parameter.requires_grad and name.startswith(self.config.parts or ("",))
        }

    def _logits(self, weights: Weights, items: Tensor) -> Tensor:
        """(B, I, N) of items (B, I, *item), each episode under its own weights."""
        of_backbone = {name: weight for name, weight in weights.items() if name != _HEAD}
        features = F.normalize(embed_under(self.backbone, of_backbone, items, None), dim=2)
        return _SCALE * features @ F.normalize(weights[_HEAD], dim=2).transpose(1, 2)


def _check_parts(parts: Sequence[str], names: Sequence[str]) -> None:
    for part in parts:
        if not any(name.startswith(part) for name in names):
            known = ", ".join(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
            raise ConfigError(
                f"meta_train.algorithm.parts has '{part}'; need the beginning of a name among {known}; "
                "next: name one of these, or leave parts out to tune the whole backbone"
            )
