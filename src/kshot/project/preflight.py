"""Checks before a run starts, of what otherwise only a late stage would find."""

from kshot.config import Params
from kshot.data.packed import PackedDataset
from kshot.evaluation.cross_domain import check_scorable
from kshot.workspace import Workspace


def check_before_run(params: Params, workspace: Workspace) -> None:
    """Raise a KshotError where a dataset of cross_domain cannot be scored on, before hours of training."""
    if not params.cross_domain:
        return
    item = PackedDataset.open(workspace.dataset(params.dataset.name)).item
    for name in params.cross_domain:
        check_scorable(PackedDataset.open(workspace.dataset(name)), item, params.task_pool.meta_test.kinds())
