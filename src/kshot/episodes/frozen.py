"""The frozen pools of a project: drawn once, written with a hash each, read only with the data they were drawn from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from kshot.data.class_table import ClassTable
from kshot.data.difficulty import Difficulty, read_difficulty
from kshot.data.packed import PackedDataset
from kshot.episodes.clusters import PARTITIONS_FILE, Partitions, cluster_table
from kshot.episodes.episode import EpisodeShape
from kshot.episodes.labels import (
    ClusterLabels,
    GivenLabels,
    InstanceLabels,
    TrainLabels,
    instance_table,
    train_items,
)
from kshot.episodes.pools import FrozenPool, SampledPool, TaskPoolSettings
from kshot.episodes.sampling import EpisodeKind, HardClasses, TrainSamplerConfig, WithinPartition
from kshot.errors import DataError
from kshot.runtime.files import json_bytes

POOLS_FILE = "pools.json"
_VAL_POOL, _TEST_POOL = "meta_val", "meta_test-"


@dataclass(frozen=True, kw_only=True)
class FrozenPools:
    """Episodes that never change: `val` for model selection; `test` and their `kinds` by setting, such as 5w1s."""

    val: FrozenPool
    test: Mapping[str, FrozenPool]
    kinds: Mapping[str, EpisodeKind]

    @property
    def by_file(self) -> dict[str, FrozenPool]:
        """Each pool by the name of its file, without the ending."""
        return {_VAL_POOL: self.val} | {f"{_TEST_POOL}{setting}": pool for setting, pool in self.test.items()}


def train_pools(
    dataset: PackedDataset, settings: TaskPoolSettings, *, seed: int, partitions: Partitions | None = None
) -> list[SampledPool]:
    """The endless pool of the meta_train classes and their views, for each shape.

    The classes are clusters of `partitions` where the settings say so. Raises DataError where the sampler asks for
    hard classes and nobody has said which are.
    """
    n_views, n_items = len(settings.meta_train.views) + 1, len(dataset.labels)
    match settings.meta_train.labels:
        case GivenLabels():
            split, n_classes = "meta_train", len(dataset.classes)
            table = _with_error_rates(dataset.class_table(split), dataset, settings)
            tables = [table] * len(settings.meta_train.kinds)
        case InstanceLabels():
            split, n_classes = "meta_train by instances", n_items
            tables = [instance_table(dataset, kind.shape.items_per_class) for kind in settings.meta_train.kinds]
        case ClusterLabels():
            assert partitions is not None, "the pool of clusters is made with them"
            return [
                _pool_of_clusters(partitions, kind, n_items=n_items, seed=seed) for kind in settings.meta_train.kinds
            ]
    return [
        SampledPool.of_split(
            table.with_views(n_views, n_items, n_classes), kind.shape, kind.sampler, seed=seed, split=split
        )
        for table, kind in zip(tables, settings.meta_train.kinds, strict=True)
    ]


def _pool_of_clusters(partitions: Partitions, kind: EpisodeKind, *, n_items: int, seed: int) -> SampledPool:
    table = cluster_table(partitions, kind.shape.items_per_class, n_views=kind.n_views, n_items=n_items)
    return SampledPool.of_split(table, kind.shape, WithinPartition(), seed=seed, split="meta_train by clusters")


def _with_error_rates(table: ClassTable, dataset: PackedDataset, settings: TaskPoolSettings) -> ClassTable:
    """The same where the sampler weighs by no errors."""
    difficulty = difficulty_of(dataset, settings)
    if difficulty is None:
        return table
    row_of = {dataset.classes[number]: row for row, number in enumerate(table.class_ids.tolist())}
    return replace(table, error_rates=difficulty.error_rates(row_of, len(row_of)))


def difficulty_of(dataset: PackedDataset, settings: TaskPoolSettings) -> Difficulty | None:
    """What the sampler of the train episodes weighs the classes by; None for a sampler that weighs by no errors."""
    sampler = settings.meta_train.sampler
    if not isinstance(sampler, HardClasses):
        return None
    return read_difficulty(dataset.folder.parent, sampler.difficulty, dataset.name)


def freeze_pools(dataset: PackedDataset, settings: TaskPoolSettings) -> FrozenPools:
    (val,) = settings.kinds()["meta_val"]
    kinds, n_episodes = settings.meta_test.kinds(), settings.meta_test.n_episodes
    return FrozenPools(
        val=_pool(dataset, "meta_val", val, seed=settings.seed).freeze(settings.meta_val.n_episodes),
        test={
            setting: _pool(dataset, "meta_test", kind, seed=settings.seed).freeze(n_episodes)
            for setting, kind in kinds.items()
        },
        kinds=kinds,
    )


def write_frozen(
    folder: Path, pools: FrozenPools, dataset: PackedDataset, settings: TaskPoolSettings, *, train_seed: int
) -> None:
    """Write one file for each pool, and pools.json: their hashes, their data, and how the train episodes are drawn."""
    for name, pool in pools.by_file.items():
        (folder / f"{name}.safetensors").write_bytes(pool.to_bytes())
    difficulty = difficulty_of(dataset, settings)
    description = {
        "data_hash": dataset.content_hash,
        "frozen": {
            name: {"hash": pool.hash, "episodes": len(pool), "shape": _plain(EpisodeShape, pool.shape)}
            for name, pool in pools.by_file.items()
        },
        "meta_train": {
            "seed": train_seed,
            "shape": _plain(EpisodeShape, settings.meta_train.shape),
            "sampler": _plain(TrainSamplerConfig, settings.meta_train.sampler),
            **_classes(dataset, settings),
            **({} if difficulty is None else {"difficulty": difficulty.lineage}),
        },
    }
    (folder / POOLS_FILE).write_bytes(json_bytes(description))


def _classes(dataset: PackedDataset, settings: TaskPoolSettings) -> dict[str, Any]:
    """What the classes of the training are, and how many where the data says that."""
    labels = settings.meta_train.labels
    if isinstance(labels, GivenLabels):
        return {"n_classes": len(dataset.class_ids("meta_train"))}
    n_classes = {"n_classes": len(train_items(dataset))} if isinstance(labels, InstanceLabels) else {}
    return {"labels": _plain(TrainLabels, labels)} | n_classes


def check_difficulty(folder: Path, dataset: PackedDataset, settings: TaskPoolSettings) -> None:
    """Raise DataError where the errors that hard classes are drawn by are not those that pools.json names."""
    difficulty = difficulty_of(dataset, settings)
    recorded = _described(folder)["meta_train"].get("difficulty", {})
    found, needed = None if difficulty is None else difficulty.sha256, recorded.get("difficulty_sha256")
    if found != needed:
        raise DataError(
            f"the task pools were made with errors {_short(needed)} of hard classes; data/difficulty holds "
            f"{_short(found)}; next: dvc repro --force task_pool"
        )


def _short(sha256: str | None) -> str:
    return sha256[:12] if sha256 else "none"


def read_frozen(folder: Path, dataset: PackedDataset, settings: TaskPoolSettings) -> FrozenPools:
    """Every frozen pool. Raises DataError when one is missing or was not drawn from this state of the dataset."""
    kinds = settings.meta_test.kinds()
    return FrozenPools(
        val=read_val_pool(folder, dataset),
        test={setting: _read_pool(folder, f"{_TEST_POOL}{setting}", dataset) for setting in kinds},
        kinds=kinds,
    )


def read_val_pool(folder: Path, dataset: PackedDataset) -> FrozenPool:
    """The frozen meta_val pool alone: training never reads the episodes of meta_test."""
    return _read_pool(folder, _VAL_POOL, dataset)


def hashes_of_test_pools(folder: Path) -> dict[str, str]:
    """Hash of each frozen meta_test pool by its setting, such as 5w1s. Raises DataError where there are none."""
    frozen = _described(folder)["frozen"]
    return {
        name.removeprefix(_TEST_POOL): entry["hash"] for name, entry in frozen.items() if name.startswith(_TEST_POOL)
    }


def read_partitions(folder: Path, dataset: PackedDataset) -> Partitions:
    """What the stage pseudo_labels left. Raises DataError where that is missing or of another state of the dataset."""
    partitions = Partitions.load(folder / PARTITIONS_FILE)
    made_from = json.loads((folder / "metrics.json").read_bytes())["data_hash"]
    if made_from != dataset.content_hash:
        raise DataError(
            f"the pseudo-classes were made from data {made_from[:12]}; {dataset.folder} is "
            f"{dataset.content_hash[:12]}; next: kshot stage pseudo_labels"
        )
    return partitions


def check_drawn_from(folder: Path, dataset: PackedDataset, *, following: str) -> None:
    """Raise DataError, which ends with the command `following`, where pools are of another state of the dataset."""
    drawn_from = _described(folder)["data_hash"]
    if drawn_from != dataset.content_hash:
        raise DataError(
            f"the task pools were drawn from data {drawn_from[:12]}; {dataset.folder} is {dataset.content_hash[:12]}; "
            f"next: {following}"
        )


def _described(folder: Path) -> dict[str, Any]:
    path = folder / POOLS_FILE
    if not path.exists():
        raise DataError(f"no {path}; need the frozen episodes; next: kshot pool, or make train")
    described: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return described


def _read_pool(folder: Path, name: str, dataset: PackedDataset) -> FrozenPool:
    pool = FrozenPool.load(folder / f"{name}.safetensors")
    check_drawn_from(folder, dataset, following="kshot validate, kshot pool")
    return pool


def _pool(dataset: PackedDataset, split: str, kind: EpisodeKind, *, seed: int) -> SampledPool:
    return SampledPool.of_split(dataset.class_table(split), kind.shape, kind.sampler, seed=seed, split=split)


def _plain(kind: Any, value: Any) -> Any:
    return TypeAdapter(kind).dump_python(value, mode="json")
