"""What the outer loop minimises, and how it selects a model.

Shapes: B numbers of episodes or of batches, I items, D features.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kshot.algorithms.answering import by_support
from kshot.algorithms.learner import Learner, MetaLearner, TransferLearner, calibrate_learner, episodes_at_once
from kshot.algorithms.maths.losses import EpisodeLoss, query_cross_entropy
from kshot.backbones.contract import Backbone, activation_bytes, calibrate, drawing
from kshot.data.batches import TrainItems
from kshot.data.class_table import Int
from kshot.data.gather import Gather
from kshot.episodes.augmentation import EpisodeAugmentation, augmented_batch, item_keys
from kshot.episodes.episode import MixedLabels
from kshot.episodes.loader import EpisodeLoader
from kshot.episodes.pools import FrozenPool
from kshot.evaluation.scoring import score_episodes
from kshot.runtime.lines import LiveLines
from kshot.runtime.workers import Workers
from kshot.training.memory import followed

_CALIBRATION_EPISODES = 16
_TRAINING_BYTES = 2**30  # of the largest activations of the episodes that are taken together


class Objective(Protocol):
    """Something to minimise: a sequence of losses by number, each a function of its number alone."""

    @property
    def module(self) -> nn.Module:
        """What is trained: those of its parameters that require gradients."""
        ...

    @property
    def at_once(self) -> int:
        """How many numbers to take together; memory grows with it."""
        ...

    @property
    def unit(self) -> str:
        """What a number counts, in the plural: episodes or batches."""
        ...

    def losses(self, numbers: range, done: float) -> Tensor:
        """(B,) for consecutive numbers, differentiable. `done`: the part of the training that is over, 0 to 1."""
        ...

    def needed_bytes(self, n_together: int) -> int:
        """About how much memory the losses of `n_together` numbers take, with their gradient.

        What autograd keeps, followed from smaller problems, and the largest activations, which are made on the way.
        """
        ...

    def score(self, workers: Workers, lines: LiveLines) -> float:
        """How good the module is now, for model selection: higher is better, and the same on every worker."""
        ...


@dataclass(frozen=True, kw_only=True)
class Episodic:
    """The loss of a meta-learner on the episodes of a pool; its accuracy on frozen meta_val episodes."""

    learner: MetaLearner[Any]
    train: EpisodeLoader
    val_pool: FrozenPool

    @property
    def module(self) -> nn.Module:
        return self.learner

    @property
    def at_once(self) -> int:
        shape = self.train.pool.shape
        return episodes_at_once(self.learner, shape.n_way * shape.items_per_class, _TRAINING_BYTES)

    @property
    def unit(self) -> str:
        return "episodes"

    def losses(self, numbers: range, done: float) -> Tensor:
        return self.learner.meta_loss(self.train.load(numbers), done)

    def needed_bytes(self, n_together: int) -> int:
        episode = self.train.load_largest(range(1))
        at_the_end = 1.0  # when a learner that begins with the first derivative has come to the second
        kept = followed(lambda n: self.learner.meta_loss(episode.first_classes(n), at_the_end), episode.n_way)
        n_items = episode.support_x.shape[1] + episode.query_x.shape[1]
        return n_together * (kept + activation_bytes(self.learner.backbone, n_items))

    def score(self, workers: Workers, lines: LiveLines) -> float:
        self.learner.eval()
        if self.learner.needs_population_statistics:
            calibrate(self.learner.backbone, self._calibration())
        return episode_accuracy(self.learner, self.val_pool, self.train.gather, workers, lines)

    def _calibration(self) -> Iterator[Tensor]:
        for number in range(_CALIBRATION_EPISODES):
            episode = self.train.load_plain(range(number, number + 1))
            yield torch.cat([episode.support_x[0], episode.query_x[0]])


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """Ordinary classification of the meta_train classes, one batch of items for each number.

    The training of the baseline of Chen et al., "A Closer Look at Few-shot Classification", 2019. A model is selected
    by its accuracy on the frozen meta_val episodes, like a meta-learner.
    """

    learner: TransferLearner[Any]
    train: TrainItems
    gather: Gather
    val_pool: FrozenPool
    loss: EpisodeLoss = query_cross_entropy
    augmentation: EpisodeAugmentation = field(default_factory=EpisodeAugmentation)

    @property
    def module(self) -> nn.Module:
        return self.learner

    @property
    def at_once(self) -> int:
        return 1

    @property
    def unit(self) -> str:
        return "batches"

    def losses(self, numbers: range, done: float) -> Tensor:
        return torch.stack([self._loss(number) for number in numbers])

    def needed_bytes(self, n_together: int) -> int:
        rows = self.train.rows(0)
        items = self.gather(self.train.items[rows[:3]])
        kept = followed(lambda n: self.learner.class_logits(items[:n]), len(rows))
        return n_together * (kept + activation_bytes(self.learner.backbone, len(rows)))

    def score(self, workers: Workers, lines: LiveLines) -> float:
        self.learner.eval()
        calibrate_learner(self.learner, self._calibration)
        return episode_accuracy(self.learner, self.val_pool, self.gather, workers, lines)

    def _loss(self, number: int) -> Tensor:
        rows = self.train.rows(number)
        items = self.gather(self.train.items[rows])
        labels = torch.from_numpy(self.train.labels[rows]).to(items.device)
        items, mixed = augmented_batch(items, labels, self.train.key(number, "augmentation"), self.augmentation)
        with drawing(self.train.key(number, "noise")):
            logits = self.learner.class_logits(items)
        return self.loss(logits.float()[None], _Labels(query_y=labels[None], mixed=mixed))[0]

    def _calibration(self) -> Iterator[Tensor]:
        return (self.gather(items) for items in self.train.calibration_batches())


@dataclass(frozen=True, kw_only=True)
class _Labels:
    query_y: Tensor
    mixed: MixedLabels | None


class Pretext(Protocol):
    """A task that items set by themselves, without labels."""

    def head(self, n_features: int) -> nn.Module:
        """What is trained on top of the backbone, and thrown away after."""
        ...

    def loss(self, backbone: nn.Module, head: nn.Module, items: Tensor, keys: Tensor) -> Tensor:
        """Of items (I, *item), each with a key (I,) int64 of its draws."""
        ...


class SelfSupervised:
    """A pretext task on the items of meta_train, one batch of items for each number; their labels are not used.

    `init_seed` draws the weights of the task's head. A model is selected by the accuracy of `learner`, which has the
    backbone, on the frozen meta_val episodes.
    """

    def __init__(
        self,
        pretext: Pretext,
        learner: Learner[Any],
        train: TrainItems,
        gather: Gather,
        val_pool: FrozenPool,
        *,
        init_seed: int,
    ) -> None:
        assert isinstance(learner.backbone, Backbone)
        self._pretext, self._backbone, self._learner = pretext, learner.backbone, learner
        self._train, self._gather, self._val_pool = train, gather, val_pool
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(init_seed)
            head = pretext.head(learner.backbone.n_features)
        self._head = head.to(next(learner.parameters()).device)
        self.module: nn.Module = nn.ModuleDict({"learner": learner, "head": self._head})
        self.at_once = 1
        self.unit = "batches"

    def losses(self, numbers: range, done: float) -> Tensor:
        return torch.stack([self._loss(number) for number in numbers])

    def needed_bytes(self, n_together: int) -> int:
        rows = self._train.rows(0)
        kept = followed(lambda n: self._loss_of(rows[:n], 0), len(rows))
        return n_together * (kept + activation_bytes(self._backbone, len(rows)))

    def score(self, workers: Workers, lines: LiveLines) -> float:
        self._learner.eval()
        batches = self._train.calibration_batches
        calibrate_learner(self._learner, lambda: (self._gather(items) for items in batches()))
        return episode_accuracy(self._learner, self._val_pool, self._gather, workers, lines)

    def _loss(self, number: int) -> Tensor:
        return self._loss_of(self._train.rows(number), number)

    def _loss_of(self, rows: Int, number: int) -> Tensor:
        items = self._gather(self._train.items[rows])
        keys = item_keys(torch.tensor([self._train.key(number, "augmentation")], device=items.device), len(items))[0]
        with drawing(self._train.key(number, "noise")):
            return self._pretext.loss(self._backbone, self._head, items, keys)


def episode_accuracy(
    learner: Learner[Any], pool: FrozenPool, gather: Gather, workers: Workers, lines: LiveLines
) -> float:
    """Mean accuracy over frozen episodes, each scored by one worker."""
    share = workers.share(range(len(pool)))
    scores = score_episodes(by_support(learner), pool.episodes(share), gather, lines=lines)
    device = next(learner.parameters()).device
    correct = workers.sum(torch.tensor(scores.correct.sum(), device=device, dtype=torch.int64))
    return int(correct) / (len(pool) * pool.shape.n_way * pool.shape.n_query)
