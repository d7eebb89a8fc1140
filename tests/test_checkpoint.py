import json
import random
from pathlib import Path

import pytest
import torch

from kshot.algorithms import MAMLConfig, ProtoNetConfig
from kshot.backbones import Conv4Config
from kshot.checkpoint import CheckpointFolder, ModelConfig, build_learner, load_model, save_model
from kshot.data.packed import ItemSpec
from kshot.episode import EpisodeShape
from kshot.errors import CheckpointError, ModelError
from kshot.training import Progress, TrainingState, ValidationPoint

CONFIG = ModelConfig(
    algorithm=MAMLConfig(inner_steps=2),
    backbone=Conv4Config(width=4),
    item=ItemSpec(image_size=16, channels=3),
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


def test_a_model_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    learner = build_learner(CONFIG, init_seed=7)
    save_model(tmp_path / "model", learner, CONFIG)
    loaded = load_model(tmp_path / "model")
    assert loaded.config == CONFIG
    assert all(
        torch.equal(a, b)
        for a, b in zip(learner.state_dict().values(), loaded.learner.state_dict().values(), strict=True)
    )


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, second, other = (build_learner(CONFIG, init_seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first["head.weight"], second["head.weight"])
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_altered_weights_are_refused(tmp_path: Path) -> None:
    save_model(tmp_path, build_learner(CONFIG), CONFIG)
    path = tmp_path / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="the weights are not those that were saved"):
        load_model(tmp_path)


def test_missing_foreign_and_newer_models_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model in .*No such file"):
        load_model(tmp_path / "none")
    save_model(tmp_path / "model", build_learner(CONFIG), CONFIG)
    description = tmp_path / "model" / "model.json"
    newer = json.loads(description.read_text()) | {"format_version": 99}
    description.write_text(json.dumps(newer))
    with pytest.raises(ModelError, match="format version 99; need 1"):
        load_model(tmp_path / "model")
    description.write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        load_model(tmp_path / "model")


def test_saving_over_a_model_leaves_no_old_file(tmp_path: Path) -> None:
    save_model(tmp_path / "model", build_learner(CONFIG), CONFIG)
    (tmp_path / "model" / "stray").touch()
    other = ModelConfig(**{**vars(CONFIG), "algorithm": ProtoNetConfig()})
    save_model(tmp_path / "model", build_learner(other), other)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["model", "model.json", "weights.safetensors"]


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
