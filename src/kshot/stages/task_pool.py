"""Freeze the meta_val and meta_test episodes, and write down how the train episodes are drawn."""

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from kshot.config import Params
from kshot.data.packed import PackedDataset
from kshot.episode import EpisodeShape
from kshot.errors import DataError
from kshot.sampling import EpisodeKind, SamplerConfig
from kshot.task_pool import FrozenPool, SampledPool

_TEST_POOL = "meta_test-"


def run(params: Params, root: Path) -> None:
    """Write one file a frozen pool, and pools.json with the hash of each."""
    dataset = PackedDataset.open(root / "data" / params.dataset.name)
    folder = root / "artifacts" / "task_pool"
    folder.mkdir(parents=True, exist_ok=True)

    val, test, seed = params.task_pool.meta_val, params.task_pool.meta_test, params.task_pool.seed
    val_kind = EpisodeKind(shape=val.shape, sampler=val.sampler)
    frozen = {"meta_val": _pool(dataset, "meta_val", val_kind, seed=seed).freeze(val.n_episodes)}
    for setting, kind in test.kinds().items():
        frozen[test_pool_name(setting)] = _pool(dataset, "meta_test", kind, seed=seed).freeze(test.n_episodes)
    for name, pool in frozen.items():
        (folder / f"{name}.safetensors").write_bytes(pool.to_bytes())
        print(f"{name}: {len(pool):,} episodes {pool.shape}, {pool.hash[:12]}")

    description = {
        "data_hash": dataset.content_hash,
        "frozen": {name: _frozen_entry(pool) for name, pool in frozen.items()},
        "meta_train": {
            "seed": params.seed,
            "shape": _plain(EpisodeShape, params.task_pool.meta_train.shape),
            "sampler": _plain(SamplerConfig, params.task_pool.meta_train.sampler),
            "n_classes": len(dataset.class_ids("meta_train")),
        },
    }
    (folder / "pools.json").write_text(json.dumps(description, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def test_pool_name(setting: str) -> str:
    """File name, without its ending, of the frozen pool of a setting such as 5w1s."""
    return f"{_TEST_POOL}{setting}"


def frozen_hashes(root: Path) -> dict[str, str]:
    """Hash of each frozen meta_test pool by its setting, such as 5w1s. Raises DataError where there are none."""
    path = root / "artifacts" / "task_pool" / "pools.json"
    if not path.exists():
        raise DataError(f"no {path}; need the frozen episodes; next: kshot pool, or make train")
    frozen = json.loads(path.read_text(encoding="utf-8"))["frozen"]
    return {
        name.removeprefix(_TEST_POOL): entry["hash"] for name, entry in frozen.items() if name.startswith(_TEST_POOL)
    }


def load_pool(root: Path, name: str, dataset: PackedDataset) -> FrozenPool:
    """A frozen pool by its file name. Raises DataError when it was not drawn from this state of the dataset."""
    folder = root / "artifacts" / "task_pool"
    pool = FrozenPool.load(folder / f"{name}.safetensors")
    drawn_from = json.loads((folder / "pools.json").read_text(encoding="utf-8"))["data_hash"]
    if drawn_from != dataset.content_hash:
        raise DataError(
            f"the task pools were drawn from data {drawn_from[:12]}; {dataset.folder} is {dataset.content_hash[:12]}; "
            "next: kshot validate, kshot pool"
        )
    return pool


def train_pool(dataset: PackedDataset, params: Params) -> SampledPool:
    """The endless pool that pools.json describes under meta_train."""
    (kind,) = params.task_pool.kinds()["meta_train"]
    return _pool(dataset, "meta_train", kind, seed=params.seed)


def _pool(dataset: PackedDataset, split: str, kind: EpisodeKind, *, seed: int) -> SampledPool:
    return SampledPool.of_split(dataset.class_table(split), kind.shape, kind.sampler, seed=seed, split=split)


def _frozen_entry(pool: FrozenPool) -> dict[str, Any]:
    return {"hash": pool.hash, "episodes": len(pool), "shape": _plain(EpisodeShape, pool.shape)}


def _plain(kind: Any, value: Any) -> Any:
    return TypeAdapter(kind).dump_python(value, mode="json")
