"""Train the backbone on the items of meta_train, before any episode, or take pretrained weights as they are.

Where params say neither, it does nothing.
"""

import shutil
from dataclasses import replace

from kshot.algorithms.linear_probe import LinearProbeConfig
from kshot.algorithms.maths.losses import CrossEntropyConfig
from kshot.backbones.layers.adopted import start_from
from kshot.config import Params
from kshot.data.packed import PackedDataset
from kshot.data.weights import PretrainedWeights, read_weights
from kshot.episodes.augmentation import EpisodeAugmentation
from kshot.model import SavedModel, build_learner, save_model
from kshot.runtime.files import json_bytes, write_folder
from kshot.stages.launch import forget_checkpoints, model_config, train, write_history
from kshot.training.fit import ModelTraining
from kshot.training.pretraining import AnyPretraining, NoPretraining, SupervisedPretraining
from kshot.workspace import Workspace

RANDOM = "random"
_NOTHING = {"initial.json": json_bytes({"initial": RANDOM})}
"""What a training from random weights depends on instead of the model, and which never changes."""


def run(params: Params, workspace: Workspace) -> None:
    """Write metrics.json and random/; with weights or a training pretrained/; and of a training history.parquet."""
    folder, settings = workspace.output("pretrain"), params.pretrain
    weights = read_weights(workspace.pretrained_weights(params.backbone.weights)) if params.backbone.weights else None
    if isinstance(settings, NoPretraining):
        as_they_are = None if weights is None else _model_of(weights, params, workspace)
        shutil.rmtree(folder, ignore_errors=True)
        write_folder(folder / RANDOM, _NOTHING)
        if as_they_are is not None:
            save_model(workspace.pretrained_model, as_they_are)
        of_weights = {} if weights is None else {"weights": weights.name}
        (folder / "metrics.json").write_bytes(json_bytes({"name": settings.name, **of_weights}))
        return
    dataset = PackedDataset.open(workspace.dataset(params.dataset.name))
    n_processes = min(params.process.n_processes, settings.batches_per_step)
    shared_out = replace(params, process=replace(params.process, n_processes=n_processes))
    trained = train("pretrain", _training(params, settings, dataset, weights), shared_out, workspace, dataset)
    if trained is None:
        return
    shutil.rmtree(folder, ignore_errors=True)
    write_folder(folder / RANDOM, _NOTHING)
    save_model(workspace.pretrained_model, trained.model)
    write_history(folder, trained)
    forget_checkpoints(trained)


def _training(
    params: Params, settings: AnyPretraining, dataset: PackedDataset, weights: PretrainedWeights | None
) -> ModelTraining:
    by_labels = ModelTraining(
        config=model_config(params, dataset, LinearProbeConfig()),
        loss=CrossEntropyConfig(),
        settings=settings.training,
        task_pool=params.task_pool,
        seed=params.seed,
        init_seed=params.seed,
        weights=weights,
    )
    if isinstance(settings, SupervisedPretraining):
        augmentation = EpisodeAugmentation(support=settings.augment, mix=settings.mix)
        return replace(by_labels, loss=settings.loss, augmentation=augmentation)
    return replace(by_labels, config=replace(by_labels.config, n_train_classes=None), pretext=settings)


def _model_of(weights: PretrainedWeights, params: Params, workspace: Workspace) -> SavedModel:
    """The backbone with these weights, which nothing trained."""
    dataset = PackedDataset.open(workspace.dataset(params.dataset.name))
    config = replace(model_config(params, dataset, LinearProbeConfig()), n_train_classes=None)
    learner = build_learner(config)
    start_from(learner.backbone, weights)
    return SavedModel(learner=learner, config=config)
