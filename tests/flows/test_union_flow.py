"""The train flow makes the union that params.yaml names before its first stage, also in a fresh clone."""

import subprocess
import sys
from pathlib import Path

import pytest
from prefect import flow

from flows import train
from kshot.config import DatasetSettings
from kshot.data.packed import PackedDataset
from kshot.data.union import check_united
from kshot.project.data_pointer import track_data
from kshot.workspace import Workspace
from kshot.yaml_file import read_yaml
from tests.tiny_dataset import tiny_dataset

pytestmark = pytest.mark.usefixtures("prefect_server")
BOTH = DatasetSettings(name="both", of=("ink", "oil"))


@flow
def unite(root: Path) -> None:
    train._unite(BOTH, Workspace(root))


def test_a_union_is_made_from_what_the_remote_has_and_pointed_at(workspace: Path) -> None:
    for name in BOTH.of:
        tiny_dataset(n_classes=3, n_images=2).write(workspace / "data" / name)
    track_data(Workspace(workspace), pytest.fail)
    subprocess.run([sys.executable, "-m", "dvc", "push", "--quiet"], cwd=workspace, check=True)
    subprocess.run(["rm", "-r", "data", ".dvc/cache"], cwd=workspace, check=True)

    unite(workspace)
    check_united(BOTH.of, "both", workspace / "data")
    assert PackedDataset.open(workspace / "data" / "both").n_stored == 36
    pointer = (workspace / "data.dvc").read_bytes()
    assert read_yaml(workspace / "data.dvc")["outs"][0]["nfiles"] == 9

    unite(workspace)
    assert (workspace / "data.dvc").read_bytes() == pointer
