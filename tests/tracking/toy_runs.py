"""A small finished run, and a project folder with a registry to register it in."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from kshot.algorithms import AlgorithmConfig, ProtoNetConfig
from kshot.backbones import Conv4Config
from kshot.data.items import ImageKind
from kshot.episodes.episode import EpisodeShape
from kshot.model import ModelConfig, SavedModel, build_learner, save_model
from kshot.serving.classifier import FewShotClassifier
from kshot.tracking import LoggedFile, MetricPoint, ModelFiles, RunRecord, TrainingData

ITEM = ImageKind(image_size=16, channels=1)


def model_files(
    folder: Path, code: Path, algorithm: AlgorithmConfig | None = None, *, shift: float = 0.0
) -> ModelFiles:
    """`shift` is added to every weight, so that models differ."""
    config = ModelConfig(
        algorithm=algorithm or ProtoNetConfig(),
        backbone=Conv4Config(width=2),
        item=ITEM,
        train_shape=EpisodeShape(n_way=3, k_shot=1, n_query=1),
    )
    learner = build_learner(config)
    with torch.no_grad():
        for weight in learner.parameters():
            weight += shift
    save_model(folder, SavedModel(learner=learner, config=config))
    example = call(ITEM.shape, labels=(0, 1))
    return ModelFiles(
        folder=folder,
        weights_sha256=sha256((folder / "weights.safetensors").read_bytes()).hexdigest(),
        code=code,
        input_example=example,
        expected=FewShotClassifier.load(folder).answer(example).to_numpy(),
    )


def call(shape: tuple[int, int, int], labels: tuple[int, ...], n_query: int = 1) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        "support_items": draw.integers(0, 256, (len(labels), *shape), dtype=np.uint8),
        "support_labels": np.array(labels),
        "query_items": draw.integers(0, 256, (n_query, *shape), dtype=np.uint8),
    }


def toy_record(project: Path) -> RunRecord:
    (project / "params.yaml").write_text("seed: 1\n")
    return RunRecord(
        root=project,
        model_name="toy",
        run_name="protonet-conv4",
        dvc_lock_sha256="a" * 64,
        params={"seed": 1, "meta_train": {"algorithm": {"name": "protonet"}}},
        metrics={"meta_test/5w1s/accuracy": 0.5},
        history=tuple(MetricPoint(name="meta_train/loss", value=1 / (step + 1), step=step) for step in range(1200)),
        tags={"git_commit": "c0ffee"},
        files=(LoggedFile(path=project / "params.yaml", folder=""),),
        data=TrainingData(name="dots", content_hash="d" * 64, source={"path": "data/dots"}),
        model=model_files(project / "model", project / "mlflow" / "model.py"),
        model_card="# toy\n",
    )
