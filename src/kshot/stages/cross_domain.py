"""Score the trained learner on the held-out classes of another dataset, which it was not trained on."""

import json
from functools import partial
from pathlib import Path

from kshot.algorithms.protonet import ProtoNet
from kshot.backbones.contract import Flatten
from kshot.baselines import PIXELS
from kshot.config import Params
from kshot.data.gather import image_gather
from kshot.data.packed import ItemSpec, PackedDataset
from kshot.distributed import choose_device
from kshot.errors import DataError, EpisodeError
from kshot.evaluation import embedded_once, score_episodes
from kshot.intervals import mean_interval
from kshot.live_lines import LiveLines
from kshot.model import load_model
from kshot.sampling import check_feasible
from kshot.stage_process import set_up_process
from kshot.task_pool import SampledPool


def check(params: Params, root: Path) -> None:
    """Raise a KshotError where a dataset of cross_domain cannot be scored on, before hours of training."""
    for name in params.cross_domain:
        dataset = PackedDataset.open(root / "data" / name)
        _check_item(dataset, PackedDataset.open(root / "data" / params.dataset.name).item)
        for kind in params.task_pool.meta_test.kinds().values():
            try:
                check_feasible(dataset.class_table("meta_test"), kind.shape, kind.sampler)
            except EpisodeError as error:
                raise EpisodeError(f"meta_test of {name}: {error}; next: take {name} out of cross_domain") from error


def run(params: Params, root: Path, name: str) -> None:
    """Write cross_domain/NAME/metrics.json: the settings of meta_test, on episodes of the dataset `name`."""
    set_up_process(params.meta_train)
    dataset = PackedDataset.open(root / "data" / name)
    saved = load_model(root / "artifacts" / "meta_train" / "model")
    _check_item(dataset, saved.item)
    device = choose_device(params.meta_train.device)
    gather, learner = image_gather(dataset, device), saved.learner.to(device)
    pixels, lines = ProtoNet(Flatten()), LiveLines(partial(print, flush=True))
    table = dataset.class_table("meta_test")
    modes = {mode: embedded_once(one, gather) for mode, one in learner.normalization_modes().items()}
    results = []
    for setting, kind in params.task_pool.meta_test.kinds().items():
        pool = SampledPool.of_split(
            table, kind.shape, kind.sampler, seed=params.task_pool.seed, split=f"cross_domain/{name}"
        ).freeze(params.task_pool.meta_test.n_episodes)
        beside = mean_interval(score_episodes(pixels, pool.indices, gather).accuracy)
        for mode, (in_mode, items) in modes.items():
            found = mean_interval(score_episodes(in_mode, pool.indices, items, lines=lines).accuracy)
            lines.say(f"{name}: {kind} {mode}: {found.mean:.2%}; {PIXELS} {beside.mean:.2%}; {len(pool):,} episodes")
            results.append(
                {
                    "setting": setting,
                    "title": str(kind),
                    "mode": mode,
                    "episodes": len(pool),
                    "accuracy": found.mean,
                    "ci95": found.half_width,
                    "baselines": {PIXELS: {"accuracy": beside.mean, "ci95": beside.half_width}},
                    "pool_hash": pool.hash,
                }
            )
    folder = root / "artifacts" / "cross_domain" / name
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {"dataset": name, "data_hash": dataset.content_hash, "results": results}
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _check_item(dataset: PackedDataset, item: ItemSpec) -> None:
    if dataset.item.shape != item.shape:
        raise DataError(
            f"{dataset.folder} has {dataset.item}; the model takes {item}; need the same size and colour; "
            f"next: ingest it so under another name, or take {dataset.name} out of cross_domain in params.yaml"
        )
