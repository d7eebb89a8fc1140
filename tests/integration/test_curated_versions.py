"""A dataset that is curated between two runs, with the real Prefect, DVC and MLflow: each version can be rebuilt."""

import subprocess
import sys
from pathlib import Path

import pytest

from kshot.data.packed import PackedDataset
from tests.copied_project import copied_project, environment, run_flow
from tests.tiny_project import tiny_params, write_project


@pytest.mark.timeout(900)
def test_versions_before_and_after_a_curation_are_rebuilt_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    params = tiny_params()
    root = copied_project(tmp_path, params, lambda copy: write_project(copy, params))
    folder = root / "data" / "tiny"
    first, second, third = (ids_of(folder, "meta_train", number)[0] for number in range(3))
    before = PackedDataset.open(folder).content_hash
    assert "tiny version 1, new" in run_flow(root)

    run(root, "kshot", "curate", "tiny", "drop", first)
    run(root, "kshot", "curate", "tiny", "relabel", second, "--to", class_of(folder, third))
    run(root, "kshot", "validate")
    assert "tiny version 2, new" in run_flow(root)
    for version in ("1", "2"):
        assert "equal to the bit" in run(root, "flows.rerun", "--version", version, "--from-scratch")

    assert "undone: edit 2" in run(root, "kshot", "curate", "tiny", "undo")
    assert "undone: edit 1" in run(root, "kshot", "curate", "tiny", "undo")
    run(root, "kshot", "validate")
    undone = PackedDataset.open(folder)
    assert first in undone.manifest["id"].to_pylist()
    assert undone.content_hash != before, "the history is part of what a dataset is"

    pixels = stored(folder, third)
    run(root, "kshot", "curate", "tiny", "erase", "--ids", third, "--yes")
    run(root, "kshot", "validate")
    assert not any(pixels in path.read_bytes() for path in folder.iterdir())
    assert not any(third.encode() in path.read_bytes() for path in folder.iterdir())
    assert "tiny version 3, new" in run_flow(root)
    assert "equal to the bit" in run(root, "flows.rerun", "--version", "3", "--from-scratch")


def ids_of(folder: Path, split: str, class_number: int) -> list[str]:
    dataset = PackedDataset.open(folder)
    name = dataset.splits.of(split)[class_number]
    rows = dataset.manifest.to_pylist()
    return [row["id"] for row in rows if row["class"] == name]


def class_of(folder: Path, identity: str) -> str:
    return next(row["class"] for row in PackedDataset.open(folder).manifest.to_pylist() if row["id"] == identity)


def stored(folder: Path, identity: str) -> bytes:
    dataset = PackedDataset.open(folder)
    return bytes(dataset.gather([dataset.manifest["id"].to_pylist().index(identity)])[0].tobytes())


def run(root: Path, module: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *words], cwd=root, env=environment(root), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
