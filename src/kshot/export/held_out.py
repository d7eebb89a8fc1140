"""What a project folder has to measure an encoder on: its items of training, and its frozen episodes of meta_test."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kshot.config import load_params
from kshot.data.batches import TrainItems
from kshot.data.items.contract import ItemKind
from kshot.data.packed import PackedDataset
from kshot.episodes.frozen import read_frozen
from kshot.episodes.pools import FrozenPool
from kshot.errors import ConfigError, DataError
from kshot.workspace import Workspace

_BATCH = 32  # of which eight are taken


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """`training` are up to 256 items of meta_train. `pools` are the frozen ones of meta_test by setting, or why not."""

    dataset: PackedDataset
    training: NDArray[Any]
    pools: dict[str, FrozenPool] | str


def held_out(root: Path, item: ItemKind) -> HeldOut | str:
    """That of the project folder `root`; why there is none for such items, in a few words."""
    workspace = Workspace(root)
    try:
        params = load_params(workspace.params)
        dataset = PackedDataset.open(workspace.dataset(params.dataset.name))
    except (ConfigError, DataError) as error:
        return str(error)
    if dataset.item != item:
        return f"data/{dataset.name} holds {dataset.item}, and the model takes {item}"
    rows = np.concatenate(TrainItems.of(dataset, batch_size=_BATCH, seed=0).calibration_batches())
    try:
        pools: dict[str, FrozenPool] | str = dict(
            read_frozen(workspace.output("task_pool"), dataset, params.task_pool).test
        )
    except DataError as error:
        pools = str(error)
    return HeldOut(dataset=dataset, training=dataset.gather(np.sort(rows)), pools=pools)
