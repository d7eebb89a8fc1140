"""One model, trained as its settings say: what the stages that train have in common."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kshot.algorithms.answering import NON_TRANSDUCTIVE
from kshot.algorithms.ensemble import BestEnsemble, EnsembleConfig, NoEnsemble, SeedsEnsemble, ensemble_of
from kshot.algorithms.learner import Choosing, Learner, MetaLearner, TransferLearner
from kshot.algorithms.maths.losses import ClassWeightedConfig, LossConfig
from kshot.backbones.contract import Backbone, has_nothing_to_train
from kshot.backbones.layers.adapter import WithAdapter
from kshot.backbones.layers.adopted import start_from
from kshot.backbones.layers.recompute import uses_recomputation
from kshot.data.batches import TrainItems
from kshot.data.gather import Gather
from kshot.data.packed import PackedDataset
from kshot.data.views import ViewedItems
from kshot.data.weights import PretrainedWeights
from kshot.episodes.augmentation import EpisodeAugmentation
from kshot.episodes.clusters import Partitions
from kshot.episodes.frozen import train_pools
from kshot.episodes.labels import train_items
from kshot.episodes.loader import EpisodeLoader
from kshot.episodes.pools import FrozenPool, TaskPoolSettings
from kshot.episodes.sampling import EpisodeKind
from kshot.errors import ConfigError, EpisodeError, TrainingError
from kshot.evaluation.calibration import fit_temperatures
from kshot.evaluation.features import on_kept_features
from kshot.evaluation.unknown import fit_unknown_rule
from kshot.model import ModelConfig, SavedModel, build_learner, load_model
from kshot.printing import counted
from kshot.runtime.lines import LiveLines
from kshot.runtime.workers import Workers
from kshot.seeding import stream_key
from kshot.training.checkpoints import CheckpointFolder
from kshot.training.loop import Progress, TrainingJob, TrainingSettings, peak_memory_bytes, train_and_keep
from kshot.training.objectives import Episodic, Objective, Pretext, SelfSupervised, Supervised, episode_accuracy


@dataclass(frozen=True, kw_only=True)
class ModelTraining:
    """A model to train: what it is made of, how, on which episodes, and from which seeds.

    `initial` is the folder of a model whose backbone the training starts from, and `weights` are what it starts from
    otherwise; without both it starts from random ones. `init_seed` draws these, and `seed` the episodes or batches.
    `pretext` is a task without labels that its backbone is trained on instead. `partitions` are pseudo-classes, where
    the episodes are of those. With an `ensemble` it is several models, which answer as one.
    """

    config: ModelConfig
    loss: LossConfig
    settings: TrainingSettings
    task_pool: TaskPoolSettings
    seed: int
    init_seed: int
    augmentation: EpisodeAugmentation = field(default_factory=EpisodeAugmentation)
    pretext: Pretext | None = None
    partitions: Partitions | None = None
    initial: Path | None = None
    weights: PretrainedWeights | None = None
    ensemble: EnsembleConfig = field(default_factory=NoEnsemble)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What came of it: the job, how it went (of the first of several seeds), and the model with its best weights."""

    job: TrainingJob
    progress: Progress
    model: SavedModel
    checkpoints: Path
    peak_memory_bytes: int


def fit(
    training: ModelTraining,
    dataset: PackedDataset,
    gather: Gather,
    val_pool: FrozenPool,
    *,
    device: torch.device,
    checkpoints: Path,
    workers: Workers,
    lines: LiveLines,
    check_memory: bool = False,
) -> Trained:
    """One worker's part. The learner's kind says what is minimised: the losses of episodes, or of classification."""
    found = [
        _fit_one(
            one,
            dataset=dataset,
            gather=gather,
            val_pool=val_pool,
            device=device,
            checkpoints=folder,
            workers=workers,
            lines=lines,
            check_memory=check_memory,
        )
        for one, folder in _seeds(training, checkpoints)
    ]
    first = found[0]
    members = [learner for one in found for learner in one.learners]
    learner = ensemble_of(members) if len(members) > 1 else members[0]
    model = SavedModel(learner=learner.eval(), config=replace(training.config, members=len(members)))
    if workers.is_first:
        temperatures = fit_temperatures(learner, val_pool.indices, gather)
        unknown = fit_unknown_rule(learner, val_pool.indices, gather, temperature=temperatures[NON_TRANSDUCTIVE])
        model = replace(model, temperatures=temperatures, unknown=unknown)
    return Trained(
        job=first.job,
        progress=first.progress,
        model=model,
        checkpoints=checkpoints,
        peak_memory_bytes=max(one.peak_memory_bytes for one in found),
    )


def init_seed(seed: int) -> int:
    """Of the weights, from that of a training."""
    return int(stream_key(seed, "init")) % 2**63


def _seeds(training: ModelTraining, checkpoints: Path) -> Iterator[tuple[ModelTraining, Path]]:
    """The training from its own seed and from each other one of its ensemble, with the folder of its checkpoints."""
    yield training, checkpoints
    if isinstance(training.ensemble, SeedsEnsemble):
        for seed in training.ensemble.of:
            yield replace(training, seed=seed, init_seed=init_seed(seed)), checkpoints / f"seed-{seed}"


@dataclass(frozen=True, kw_only=True)
class _FromOneSeed:
    job: TrainingJob
    progress: Progress
    learners: Sequence[Learner[Any]]
    peak_memory_bytes: int


def _fit_one(
    training: ModelTraining,
    *,
    dataset: PackedDataset,
    gather: Gather,
    val_pool: FrozenPool,
    device: torch.device,
    checkpoints: Path,
    workers: Workers,
    lines: LiveLines,
    check_memory: bool,
) -> _FromOneSeed:
    learner = build_learner(training.config, training.loss.build(), init_seed=training.init_seed)
    if training.initial is not None:
        _continue_from(learner, training.initial)
    elif training.weights is not None:
        start_from(learner.backbone, training.weights)
    check_recomputation(learner.backbone)
    learner = learner.to(device)
    trained, known = on_kept_features(learner, gather)
    if isinstance(trained.backbone, WithAdapter):
        items = _train_items(training, dataset)
        trained.backbone.set_centre(known(batch) for batch in items.calibration_batches())
    job = TrainingJob(
        objective=_objective(training, trained, dataset, known, val_pool),
        settings=training.settings,
        checkpoints=CheckpointFolder(checkpoints),
        workers=workers,
        lines=lines,
        check_memory=check_memory,
        keep_best=training.ensemble.k if isinstance(training.ensemble, BestEnsemble) else 1,
    )
    progress, best = train_and_keep(job)
    peak = peak_memory_bytes(device)
    learners = []
    for weights in _averaged(best) if _averages_weights(training) else best:
        job.objective.module.load_state_dict(weights)
        if _averages_weights(training):
            accuracy = job.objective.score(workers, lines)  # with population statistics of these weights
            lines.log(f"weights averaged over {counted(len(best), 'validation')}  meta_val accuracy {accuracy:.2%}")
        _choose(trained.eval(), val_pool, known, workers, lines)
        learners.append(deepcopy(learner) if len(best) > 1 else learner)
    return _FromOneSeed(job=job, progress=progress, learners=learners, peak_memory_bytes=peak)


def _averages_weights(training: ModelTraining) -> bool:
    return isinstance(training.ensemble, BestEnsemble) and training.ensemble.average == "weights"


def _averaged(states: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """One state whose tensors are the means over the states; whole numbers are those of the first."""
    first = states[0]
    means = {
        name: torch.stack([state[name] for state in states]).mean(0) if tensor.is_floating_point() else tensor
        for name, tensor in first.items()
    }
    return [means]


def check_recomputation(backbone: nn.Module) -> None:
    """Raise ConfigError where this process is to compute activations again, and the backbone has no blocks for that."""
    if not uses_recomputation() or has_nothing_to_train(backbone):
        return
    if not (isinstance(backbone, Backbone) and backbone.recomputes):
        raise ConfigError(
            "process.recompute is true, and the backbone has no blocks of layers to compute again; needed conv4, "
            "resnet12, or a network that is a sequence of blocks; next: set process.recompute: false"
        )


def check_ways(learner: Learner[Any], kinds: Mapping[str, tuple[EpisodeKind, ...]]) -> None:
    """Raise EpisodeError when a configured episode has more classes than the learner can tell apart."""
    for split, shape in ((split, kind.shape) for split, group in kinds.items() for kind in group):
        if learner.max_way is not None and shape.n_way > learner.max_way:
            raise EpisodeError(
                f"{split} asks for {shape}; this learner, trained {learner.max_way}-way, tells at most "
                f"{learner.max_way} classes apart; next: raise task_pool.meta_train.shape.n_way or take the setting out"
            )


def _objective(
    training: ModelTraining, learner: Learner[Any], dataset: PackedDataset, gather: Gather, val_pool: FrozenPool
) -> Objective:
    views = training.task_pool.meta_train.views
    viewed = ViewedItems(gather, len(dataset.labels), views) if views else gather
    if training.pretext is not None:  # which needs no classes
        items = _train_items(training, dataset)
        return SelfSupervised(training.pretext, learner, items, gather, val_pool, init_seed=training.init_seed)
    if isinstance(learner, TransferLearner):
        if training.augmentation.query is not None:
            raise ConfigError(
                f"meta_train.augment.query is given, and {training.config.algorithm.name} is trained on batches "
                "without queries; next: set meta_train.augment.support alone"
            )
        items = TrainItems.of(
            dataset, batch_size=training.settings.batch_size, seed=training.seed, n_views=len(views) + 1
        )
        counts = torch.from_numpy(np.bincount(items.labels)).to(next(learner.parameters()).device)
        return Supervised(
            learner=learner,
            train=items,
            gather=viewed,
            val_pool=val_pool,
            loss=training.loss.build(counts),
            augmentation=training.augmentation,
        )
    if isinstance(learner, MetaLearner):
        if training.settings.n_steps == 0 and not has_nothing_to_train(learner):
            raise ConfigError(
                f"meta_train.training.n_steps is 0; {training.config.algorithm.name} is trained on episodes and needs "
                "at least 1; next: set n_steps: 600, an algorithm that needs no episodes, such as {name: ridge}, or "
                "backbone.freeze: all"
            )
        if isinstance(training.loss, ClassWeightedConfig):
            raise ConfigError(
                f"meta_train.loss is class_weighted; {training.config.algorithm.name} is trained on episodes, whose "
                "classes have the same number of queries; next: set meta_train.loss: {name: cross_entropy}"
            )
        train = EpisodeLoader.of_training(
            train_pools(dataset, training.task_pool, seed=training.seed, partitions=training.partitions),
            viewed,
            training.augmentation,
            per_step=training.settings.episodes_per_step,
        )
        return Episodic(learner=learner, train=train, val_pool=val_pool)
    raise TrainingError(
        f"{training.config.algorithm.name} is neither a MetaLearner nor a TransferLearner; need one to train it"
    )


def _train_items(training: ModelTraining, dataset: PackedDataset) -> TrainItems:
    """The items of meta_train in batches, whose order is that of the classes only where their labels are used."""
    settings = training.settings
    if training.task_pool.meta_train.has_given_labels:
        return TrainItems.of(dataset, batch_size=settings.batch_size, seed=training.seed)
    return TrainItems.without_labels(train_items(dataset), batch_size=settings.batch_size, seed=training.seed)


def _choose(learner: Learner[Any], val_pool: FrozenPool, gather: Gather, workers: Workers, lines: LiveLines) -> None:
    """Settle what the learner leaves to meta_val, in place and the same on every worker."""
    if not isinstance(learner, Choosing) or len(learner.choices) == 1:
        return
    accuracy = {}
    for choice in learner.choices:
        learner.choose(choice)
        accuracy[choice] = episode_accuracy(learner, val_pool, gather, workers, lines)
        lines.log(f"with {choice:g}  meta_val accuracy {accuracy[choice]:.2%}")
    learner.choose(max(accuracy, key=accuracy.__getitem__))


def _continue_from(learner: Learner[Any], folder: Path) -> None:
    """Give the learner the backbone of the model in `folder`."""
    initial = load_model(folder)
    backbone = learner.backbone.base if isinstance(learner.backbone, WithAdapter) else learner.backbone
    try:
        backbone.load_state_dict(initial.learner.backbone.state_dict())
    except RuntimeError as error:
        raise TrainingError(
            f"the backbone in {folder} does not fit this one ({str(error).splitlines()[0]}); "
            "next: run the pretrain stage"
        ) from error
