"""Training and evaluation on arrays of items and labels: the library without the pipeline.

Shapes: I items.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from kshot.algorithms.answering import served
from kshot.algorithms.learner import Learner, MetaLearner
from kshot.data.class_table import ClassTable
from kshot.data.gather import item_gather
from kshot.data.packed import PackedDataset
from kshot.episodes.episode import EpisodeShape
from kshot.episodes.loader import EpisodeLoader
from kshot.episodes.pools import SampledPool
from kshot.episodes.sampling import Uniform
from kshot.errors import EpisodeError
from kshot.evaluation.intervals import Interval, mean_interval
from kshot.evaluation.scoring import score_episodes
from kshot.runtime.lines import LiveLines, silent_lines
from kshot.training.loop import TrainingJob, TrainingSettings, TrainingState, run_training
from kshot.training.objectives import Episodic

_VAL_EPISODES = 200


def evaluate(
    learner: Learner[Any],
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    *,
    n_way: int,
    k_shot: int,
    n_query: int = 15,
    n_episodes: int = 1000,
    seed: int = 1,
) -> Interval:
    """Mean accuracy, with its 95% interval, on episodes drawn from items x (I, *item) with integer labels y (I,).

    Each query is classified alone, as in serving: no prediction depends on the other queries of its episode.
    Raises EpisodeError where y has too few classes, or a class too few items.
    """
    shape = EpisodeShape(n_way=n_way, k_shot=k_shot, n_query=n_query)
    pool = _pool(y, shape, seed=seed, split="meta_test").freeze(n_episodes)
    return mean_interval(score_episodes(served(learner).eval(), pool.indices, _gather(x, learner)).accuracy)


def train(
    learner: MetaLearner[Any],
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    shape: EpisodeShape,
    *,
    validate_on: tuple[ArrayLike | Tensor, ArrayLike | Tensor],
    n_steps: int,
    episodes_per_step: int = 1,
    outer_lr: float = 1e-3,
    validate_every: int = 100,
    patience: int | None = None,
    seed: int = 1,
    lines: LiveLines | None = None,
) -> float:
    """Meta-train in place on episodes of items x (I, *item) with labels y (I,), and keep the weights that were best on
    episodes of `validate_on`, which is (x, y) of other classes. Returns their accuracy there.

    Stops after `patience` validations in a row without a better accuracy; None goes on to the last step.
    """
    if not isinstance(learner, MetaLearner):
        raise EpisodeError(f"train got a {type(learner).__name__}; need a MetaLearner, such as ProtoNet, MAML or ANIL")
    gather = _gather(x, learner)
    val_x, val_y = validate_on
    n_stored = len(gather.items)
    both = _Items(torch.cat([gather.items, _gather(val_x, learner).items]))
    val_pool = _pool(val_y, shape, seed=seed, split="meta_val", first_item=n_stored).freeze(_VAL_EPISODES)
    loader = EpisodeLoader.of_training([_pool(y, shape, seed=seed, split="meta_train")], both)
    job = TrainingJob(
        objective=Episodic(learner=learner, train=loader, val_pool=val_pool),
        settings=TrainingSettings(
            n_steps=n_steps,
            episodes_per_step=episodes_per_step,
            outer_lr=outer_lr,
            schedule="cosine",
            validate_every=validate_every,
            patience=patience or n_steps,
        ),
        checkpoints=_NoCheckpoints(),
        lines=lines or silent_lines(),
    )
    return run_training(job).best_accuracy


def arrays(dataset: PackedDataset, split: str) -> tuple[Tensor, Tensor]:
    """Items (I, *item) of a split, as a backbone takes them, and the number of each one's class (I,)."""
    table = dataset.class_table(split)
    present = np.arange(table.items.shape[1]) < table.counts[:, None]
    x = item_gather(dataset, torch.device("cpu"))(table.items[present])
    return x, torch.from_numpy(np.nonzero(present)[0])


class _Items:
    """Item indices (...) -> items (..., *item), from one tensor."""

    def __init__(self, items: Tensor) -> None:
        self.items = items

    def __call__(self, indices: Any) -> Tensor:
        return self.items[torch.as_tensor(indices, device=self.items.device)]


class _NoCheckpoints:
    def latest(self) -> TrainingState | None:
        return None

    def save(self, state: TrainingState) -> None:
        pass


def _gather(x: ArrayLike | Tensor, learner: Learner[Any]) -> _Items:
    device = next((parameter.device for parameter in learner.parameters()), torch.device("cpu"))
    return _Items(torch.as_tensor(x, dtype=torch.get_default_dtype(), device=device))


def _pool(y: ArrayLike | Tensor, shape: EpisodeShape, *, seed: int, split: str, first_item: int = 0) -> SampledPool:
    labels = y.cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise EpisodeError(f"labels are {labels.dtype} {labels.shape}; need one integer for each item")
    names, numbers = np.unique(labels, return_inverse=True)
    table = ClassTable.from_labels(
        numbers.astype(np.int64), np.arange(len(names)), np.zeros(len(names), dtype=np.int64)
    )
    if first_item:
        items = np.where(table.items < 0, table.items, table.items + first_item)
        table = ClassTable(**{**vars(table), "items": items})
    return SampledPool.of_split(table, shape, Uniform(), seed=seed, split=split)
