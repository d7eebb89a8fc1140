"""Every learner in the registry: registered, then asked as `kshot predict` asks it."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from kshot.algorithms import AlgorithmConfig
from kshot.serving.prediction import predict_files
from kshot.tracking import prepare_store, register
from tests.tracking.toy_runs import ITEM, model_files, toy_record

EVERY = [config() for config in get_args(get_args(AlgorithmConfig)[0])]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("registry")
    (root / "mlflow").symlink_to(Path(__file__).parents[2] / "mlflow")
    prepare_store(root)
    return root


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two examples of each of three classes, and two queries."""
    draw = np.random.default_rng(0)
    for name in ("ant/0", "ant/1", "bee/0", "bee/1", "cow/0", "cow/1", "query/0", "query/1"):
        path = tmp_path / ("" if name.startswith("query") else "support") / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, ITEM.shape[:2], dtype=np.uint8)).save(path)
    return tmp_path


@pytest.mark.parametrize("config", EVERY, ids=lambda config: config.name)
def test_a_registered_version_answers_as_the_model_that_was_saved(
    registry: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, smoke_test_here: None, config: AlgorithmConfig
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    model = model_files(registry / config.name / "model", registry / "mlflow" / "model.py", config)
    lock = sha256(config.name.encode()).hexdigest()
    done = register(replace(toy_record(registry), model_name=config.name, dvc_lock_sha256=lock, model=model))
    of_folder, of_version = (
        predict_files(name, pictures / "support", [pictures / "query"], root=registry)
        for name in (str(model.folder), f"models:/{config.name}/{done.version}")
    )
    assert of_version.classes == ("ant", "bee", "cow")
    assert len(of_version.predicted) == 2
    assert of_version.predicted == of_folder.predicted
