"""Score the trained learner on the held-out classes of another dataset, which it was not trained on."""

from functools import partial

from kshot.config import Params
from kshot.data.gather import item_gather
from kshot.data.packed import PackedDataset
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
    results = score_cross_domain(
        saved.on(device).learner,
        dataset,
        KeptItems(item_gather(dataset, device), dataset, workspace.features),
        params.task_pool,
        LiveLines(partial(print, flush=True)),
    )
    folder = workspace.output(f"cross_domain@{name}")
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {"dataset": name, "data_hash": dataset.content_hash, "results": results}
    (folder / "metrics.json").write_bytes(json_bytes(metrics))
