"""Freeze the meta_val and meta_test episodes, and write down how the train episodes are drawn."""

from kshot.config import Params
from kshot.data.packed import PackedDataset
from kshot.episodes.frozen import freeze_pools, train_pools, write_frozen
from kshot.episodes.labels import ClusterLabels
from kshot.episodes.sampling import check_feasible
from kshot.workspace import Workspace


def run(params: Params, workspace: Workspace) -> None:
    """Write one file for each frozen pool, and pools.json with the hash of each."""
    dataset = PackedDataset.open(workspace.dataset(params.dataset.name))
    if not isinstance(params.task_pool.meta_train.labels, ClusterLabels):  # which the stage pseudo_labels has to make
        for drawn in train_pools(dataset, params.task_pool, seed=params.seed):
            check_feasible(drawn.table, drawn.shape, drawn.sampler)
    pools = freeze_pools(dataset, params.task_pool)
    folder = workspace.output("task_pool")
    folder.mkdir(parents=True, exist_ok=True)
    write_frozen(folder, pools, dataset, params.task_pool, train_seed=params.seed)
    for name, pool in pools.by_file.items():
        print(f"{name}: {len(pool):,} episodes {pool.shape}, {pool.hash[:12]}")
