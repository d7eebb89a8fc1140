import json
from pathlib import Path

import pytest
import torch

from kshot.algorithms import MAMLConfig, ProtoNetConfig
from kshot.backbones import Conv4Config
from kshot.data.items import ImageKind
from kshot.episodes.episode import EpisodeShape
from kshot.errors import ModelError
from kshot.model import ModelConfig, SavedModel, build_learner, load_model, save_model

CONFIG = ModelConfig(
    algorithm=MAMLConfig(inner_steps=2),
    backbone=Conv4Config(width=4),
    item=ImageKind(image_size=16, channels=3),
    train_shape=EpisodeShape(n_way=4, k_shot=1, n_query=2),
)


def test_a_model_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    learner = build_learner(CONFIG, init_seed=7)
    save_model(tmp_path / "model", SavedModel(learner=learner, config=CONFIG))
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
    save_model(tmp_path, SavedModel(learner=build_learner(CONFIG), config=CONFIG))
    path = tmp_path / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="the weights are not those that were saved"):
        load_model(tmp_path)


def test_missing_foreign_and_newer_models_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model in .*No such file"):
        load_model(tmp_path / "none")
    save_model(tmp_path / "model", SavedModel(learner=build_learner(CONFIG), config=CONFIG))
    description = tmp_path / "model" / "model.json"
    newer = json.loads(description.read_text()) | {"format_version": 99}
    description.write_text(json.dumps(newer))
    with pytest.raises(ModelError, match="format version 99; need 1"):
        load_model(tmp_path / "model")
    description.write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        load_model(tmp_path / "model")


def test_saving_over_a_model_leaves_no_old_file(tmp_path: Path) -> None:
    save_model(tmp_path / "model", SavedModel(learner=build_learner(CONFIG), config=CONFIG))
    (tmp_path / "model" / "stray").touch()
    other = ModelConfig(**{**vars(CONFIG), "algorithm": ProtoNetConfig()})
    save_model(tmp_path / "model", SavedModel(learner=build_learner(other), config=other))
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["model", "model.json", "weights.safetensors"]
