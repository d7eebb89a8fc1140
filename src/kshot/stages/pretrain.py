"""Train the backbone to tell the meta_train classes apart, before any episode; or nothing, where params say `none`."""

import shutil

from kshot.algorithms.linear_probe import LinearProbeConfig
from kshot.algorithms.maths.losses import CrossEntropyConfig
from kshot.config import Params
from kshot.data.packed import PackedDataset
from kshot.model import save_model
from kshot.runtime.files import json_bytes
from kshot.stages.launch import forget_checkpoints, model_config, train, write_history
from kshot.training.fit import ModelTraining
from kshot.training.pretraining import NoPretraining
from kshot.workspace import Workspace


def run(params: Params, workspace: Workspace) -> None:
    """Write metrics.json; and where something was trained, model/ and history.parquet."""
    folder = workspace.output("pretrain")
    folder.mkdir(parents=True, exist_ok=True)
    settings = params.pretrain
    if isinstance(settings, NoPretraining):
        shutil.rmtree(workspace.pretrained_model, ignore_errors=True)
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
    trained = train("pretrain", training, params, workspace, dataset)
    if trained is None:
        return
    save_model(workspace.pretrained_model, trained.model)
    write_history(folder, trained)
    forget_checkpoints(trained)
