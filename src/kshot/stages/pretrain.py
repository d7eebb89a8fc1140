"""Train the backbone to tell the meta_train classes apart, before any episode; or nothing, where params say `none`."""

import shutil
from dataclasses import replace

from kshot.algorithms.linear_probe import LinearProbeConfig
from kshot.algorithms.maths.losses import CrossEntropyConfig
from kshot.config import Params
from kshot.data.packed import PackedDataset
from kshot.model import save_model
from kshot.runtime.files import json_bytes, write_folder
from kshot.stages.launch import forget_checkpoints, model_config, train, write_history
from kshot.training.fit import ModelTraining
from kshot.training.pretraining import NoPretraining
from kshot.workspace import Workspace

RANDOM = "random"
_NOTHING = {"initial.json": json_bytes({"initial": RANDOM})}
"""What a training from random weights depends on instead of the model, and which never changes."""


def run(params: Params, workspace: Workspace) -> None:
    """Write metrics.json and random/; and where something was trained, pretrained/ and history.parquet."""
    folder, settings = workspace.output("pretrain"), params.pretrain
    if isinstance(settings, NoPretraining):
        shutil.rmtree(folder, ignore_errors=True)
        write_folder(folder / RANDOM, _NOTHING)
        (folder / "metrics.json").write_bytes(json_bytes({"name": settings.name}))
        return
    dataset = PackedDataset.open(workspace.dataset(params.dataset.name))
    training = ModelTraining(
        config=model_config(params, dataset, LinearProbeConfig()),
        loss=CrossEntropyConfig(),
        settings=settings.training,
        task_pool=params.task_pool,
        seed=params.seed,
        init_seed=params.seed,
    )
    alone = replace(params, process=replace(params.process, n_processes=1))  # a step has one batch, for one worker
    trained = train("pretrain", training, alone, workspace, dataset)
    if trained is None:
        return
    shutil.rmtree(folder, ignore_errors=True)
    write_folder(folder / RANDOM, _NOTHING)
    save_model(workspace.pretrained_model, trained.model)
    write_history(folder, trained)
    forget_checkpoints(trained)
