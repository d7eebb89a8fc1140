"""The same training from another seed, scored on the same episodes: how far results spread with the seed."""

from functools import partial

from kshot.config import Params
from kshot.data.gather import item_gather
from kshot.data.packed import PackedDataset
from kshot.episodes.frozen import read_frozen
from kshot.evaluation.features import KeptItems
from kshot.evaluation.grid import Grid, score_model
from kshot.model import save_model
from kshot.runtime.files import json_bytes
from kshot.runtime.lines import LiveLines
from kshot.runtime.workers import choose_device
from kshot.stages.launch import forget_checkpoints, train, training_of
from kshot.workspace import Workspace


def run(params: Params, workspace: Workspace, seed: str) -> None:
    """Write seeds/SEED/model/ and seeds/SEED/metrics.json, with the accuracy of each setting in each mode."""
    dataset = PackedDataset.open(workspace.dataset(params.dataset.name))
    training = training_of(params, dataset, workspace, seed=int(seed))
    trained = train(f"seeds@{seed}", training, params, workspace, dataset)
    if trained is None:
        return
    folder = workspace.output(f"seeds@{seed}")
    save_model(folder / "model", trained.model)
    device = choose_device(params.process.device)
    frozen = read_frozen(workspace.output("task_pool"), dataset, params.task_pool)
    found = score_model(
        Grid(dataset=dataset, frozen=frozen, seed=int(seed)),
        trained.model.on(device),
        KeptItems(item_gather(dataset, device), dataset, workspace.features),
        baselines={},
        lines=LiveLines(partial(print, flush=True)),
    )
    shown = ("setting", "title", "mode", "norm", "accuracy", "ci95")
    results = [{key: result[key] for key in shown if key in result} for result in found.metrics["results"]]
    (folder / "metrics.json").write_bytes(json_bytes({"seed": int(seed), "results": results}))
    forget_checkpoints(trained)
