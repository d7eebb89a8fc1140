"""Score the trained learner on the held-out classes of another dataset, which it was not trained on.

Beside it stand pixels, and the heads on the pretrained backbone as `evaluate` scores them: what they know of items as a
whole is from the dataset of the training.
"""

from functools import partial

from kshot.algorithms.protonet import ProtoNet
from kshot.backbones.contract import Flatten
from kshot.config import Params
from kshot.data.gather import item_gather
from kshot.data.packed import PackedDataset
from kshot.evaluation.baselines import PIXELS, pretrained_baselines
from kshot.evaluation.cross_domain import check_item, score_cross_domain
from kshot.evaluation.features import KeptItems
from kshot.model import load_model
from kshot.runtime.files import json_bytes
from kshot.runtime.lines import LiveLines
from kshot.runtime.process import set_up_process
from kshot.runtime.workers import choose_device
from kshot.workspace import Workspace


def run(params: Params, workspace: Workspace, name: str) -> None:
    """Write cross_domain/NAME/metrics.json: the settings of meta_test, on episodes of the dataset `name`."""
    set_up_process(params.process)
    dataset = PackedDataset.open(workspace.dataset(name))
    saved = load_model(workspace.model)
    check_item(dataset, saved.item)
    device = choose_device(params.process.device)
    learner = saved.on(device).learner
    trained_on = PackedDataset.open(workspace.dataset(params.dataset.name))
    heads = pretrained_baselines(
        workspace.pretrained_model, learner, trained_on, item_gather(trained_on, device), seed=params.seed
    )
    results = score_cross_domain(
        learner,
        dataset,
        KeptItems(item_gather(dataset, device), dataset, workspace.features),
        params.task_pool,
        baselines={PIXELS: ProtoNet(Flatten()), **heads},
        lines=LiveLines(partial(print, flush=True)),
    )
    folder = workspace.output(f"cross_domain@{name}")
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row | saved.config.beside_mode for row in results]
    metrics = {"dataset": name, "data_hash": dataset.content_hash, "results": rows}
    (folder / "metrics.json").write_bytes(json_bytes(metrics))
