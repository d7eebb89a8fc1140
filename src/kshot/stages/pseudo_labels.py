"""Cluster the items of meta_train by their features, without their labels: classes for the episodes of the training.

Where params ask for none, it does nothing.
"""

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from kshot.backbones.contract import Backbone, freeze
from kshot.config import Params
from kshot.data.class_table import Int
from kshot.data.gather import Gather, item_gather
from kshot.data.packed import PackedDataset
from kshot.episodes.clusters import PARTITIONS_FILE, AnyClustering, NoPseudoLabels, partitions_of
from kshot.episodes.frozen import train_pools
from kshot.episodes.labels import train_items
from kshot.episodes.sampling import check_feasible
from kshot.evaluation.features import KeptItems
from kshot.model import load_model
from kshot.runtime.cpu import usable_cores
from kshot.runtime.files import json_bytes, write_folder
from kshot.runtime.lines import LiveLines
from kshot.runtime.memory import free_bytes
from kshot.runtime.workers import choose_device
from kshot.workspace import Workspace

_ITEMS_AT_ONCE = 1024
_COPIES = 2  # of the features, that clustering them needs at most


def run(params: Params, workspace: Workspace) -> None:
    """Write partitions.safetensors, and metrics.json with its hash and how many clusters are too small.

    Raises EpisodeError where those that are left are too few for an episode.
    """
    folder, settings = workspace.output("pseudo_labels"), params.pseudo_labels
    if isinstance(settings, NoPseudoLabels):
        write_folder(folder, {"metrics.json": json_bytes({"name": settings.name})})  # never changes
        return
    dataset = PackedDataset.open(workspace.dataset(params.dataset.name))
    lines, items = LiveLines(partial(print, flush=True)), train_items(dataset)
    features = _features(params, workspace, dataset, items)
    lines.log(f"{dataset.name}: {len(items):,} items of meta_train by {features.shape[1]:,} {settings.features}")
    partitions = partitions_of(
        features,
        items,
        settings,
        seed=params.seed,
        at_once=_at_once(settings, features.nbytes),
        report=lambda number: lines.log_sparingly(lambda: f"partition {number} of {settings.n_partitions}"),
    )
    n_views, n_all = len(params.task_pool.meta_train.views) + 1, partitions.clusters.shape[0] * settings.n_clusters
    kept = {}
    for pool in train_pools(dataset, params.task_pool, seed=params.seed, partitions=partitions):
        check_feasible(pool.table, pool.shape, pool.sampler)
        kept[pool.shape.items_per_class] = len(pool.table.class_ids) // n_views
    for n_items, n_kept in kept.items():
        lines.log(f"{n_kept:,} of {n_all:,} clusters have {n_items} items or more; {n_all - n_kept:,} are left out")
    metrics = {
        "name": settings.name,
        "features": settings.features,
        "data_hash": dataset.content_hash,
        "partitions": settings.n_partitions,
        "hash": partitions.hash,
        "clusters": n_all,
        "left_out": {f"of fewer than {n_items} items": n_all - n_kept for n_items, n_kept in kept.items()},
    }
    write_folder(folder, {PARTITIONS_FILE: partitions.to_bytes(), "metrics.json": json_bytes(metrics)})


def _features(params: Params, workspace: Workspace, dataset: PackedDataset, items: Int) -> NDArray[np.float32]:
    """(I, D) of the items (I,): their own values, or what the backbone of the stage pretrain makes of them."""
    assert not isinstance(params.pseudo_labels, NoPseudoLabels), "there are features where there is a clustering"
    if params.pseudo_labels.features == "values":
        return _in_parts(item_gather(dataset, torch.device("cpu")), items)
    device = choose_device(params.process.device)
    backbone = load_model(workspace.pretrained_model).learner.backbone.to(device)
    assert isinstance(backbone, Backbone)
    features = KeptItems(item_gather(dataset, device), dataset, workspace.features).features_of(freeze(backbone, "all"))
    assert features is not None, "a frozen backbone with parameters has nothing to train"
    return _in_parts(features, items)


def _in_parts(gather: Gather, items: Int) -> NDArray[np.float32]:
    parts = np.array_split(items, max(1, len(items) // _ITEMS_AT_ONCE))
    return np.concatenate([gather(part).flatten(1).float().cpu().numpy() for part in parts])


def _at_once(settings: AnyClustering, size_bytes: int) -> int:
    """How many partitions to make together: as many as there are cores, and as the memory has room for."""
    free = free_bytes(torch.device("cpu"))
    room = settings.n_partitions if free is None else free // (_COPIES * size_bytes)
    return max(1, min(usable_cores(), settings.n_partitions, room))
