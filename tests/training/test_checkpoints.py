import random
from pathlib import Path

import pytest
import torch

from kshot.algorithms import MAMLConfig
from kshot.backbones import Conv4Config
from kshot.data.items import ImageKind
from kshot.episodes.episode import EpisodeShape
from kshot.errors import CheckpointError
from kshot.model import ModelConfig
from kshot.training.checkpoints import CheckpointFolder
from kshot.training.loop import Progress, TrainingState, ValidationPoint

CONFIG = ModelConfig(
    algorithm=MAMLConfig(inner_steps=2),
    backbone=Conv4Config(width=4),
    item=ImageKind(image_size=16, channels=3),
    train_shape=EpisodeShape(n_way=4, k_shot=1, n_query=2),
)


def state(step: int) -> TrainingState:
    point = ValidationPoint(step=step, loss=0.5, learning_rate=0.1, val_accuracy=0.75)
    return TrainingState(
        progress=Progress(step=step, best_accuracy=0.75, loss_sum=0.25, history=(point,)),
        weights={"a": torch.full((3,), float(step))},
        optimizer={"0.exp_avg": torch.ones(2), "0.step": torch.tensor(float(step))},
        best_weights={"a": torch.zeros(3)},
    )


def test_the_newest_two_states_are_kept_and_the_newest_comes_back(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    assert folder.latest() is None
    for step in (10, 20, 100):
        folder.save(state(step))
    assert sorted(p.name for p in folder.folder.iterdir()) == ["step-000000020", "step-000000100"]
    latest = folder.latest()
    assert latest is not None
    assert latest.progress == state(100).progress
    assert torch.equal(latest.weights["a"], torch.full((3,), 100.0))
    assert latest.optimizer["0.step"].shape == ()


def test_a_damaged_checkpoint_is_never_loaded(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    rng = random.Random(0)
    for _ in range(60):
        folder.save(state(1))
        folder.save(state(2))
        files = sorted(p for p in (tmp_path / "step-000000002").iterdir() if p.name != "manifest.json")
        path = rng.choice(files)
        content = bytearray(path.read_bytes())
        position = rng.randrange(len(content))
        match rng.choice(["flip", "cut", "zero", "gone"]):
            case "flip":
                content[position] ^= 1 << rng.randrange(8)
            case "cut":
                del content[position:]
            case "zero":
                content[len(content) // 2 :] = b"\1" * (len(content) - len(content) // 2)
            case "gone":
                path.unlink()
        if path.exists():
            path.write_bytes(content)
        latest = folder.latest()
        assert latest is not None and latest.progress.step == 1


def test_when_all_are_damaged_training_does_not_start_over_silently(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(state(1))
    (tmp_path / "step-000000001" / "weights.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="1 checkpoints in .*, none as it was written; .*next: rm -r"):
        folder.latest()


def test_a_write_cut_off_leaves_the_state_before(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(state(1))
    unfinished = tmp_path / "step-000000002.unfinished"
    unfinished.mkdir()
    (unfinished / "weights.safetensors").write_bytes(b"half")
    latest = folder.latest()
    assert latest is not None and latest.progress.step == 1
    folder.save(state(2))
    assert not unfinished.exists()
