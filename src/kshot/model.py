"""A learner as a value: what it is made of, how it is built, saved and loaded.

On disk it is a folder with the tensors as safetensors, the rest as JSON, and the SHA-256 of the weights.
Damage is found by that hash: safetensors loads a file with flipped bits silently.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from pydantic import ValidationError as PydanticError
from pydantic.dataclasses import dataclass as settings
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from kshot.algorithms import AlgorithmConfig, Learner
from kshot.backbones import BackboneConfig
from kshot.backbones.contract import Backbone
from kshot.data.packed import ItemSpec
from kshot.episodes.episode import EpisodeShape
from kshot.errors import ModelError
from kshot.runtime.files import json_bytes, write_folder
from kshot.settings import STRICT

_FORMAT_VERSION = 1
_NO_MODEL = "next: kshot train, or name a folder that holds model.json and weights.safetensors"


@settings(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """What a learner is made of: enough to build it again and to feed it."""

    algorithm: AlgorithmConfig
    backbone: BackboneConfig
    item: ItemSpec
    train_shape: EpisodeShape


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    learner: Learner[Any]
    config: ModelConfig

    @property
    def item(self) -> ItemSpec:
        return self.config.item

    def on(self, device: torch.device) -> "SavedModel":
        """The same with the learner moved to `device`."""
        self.learner.to(device)
        return self


def build_learner(config: ModelConfig, *, init_seed: int = 0) -> Learner[Any]:
    """A learner with fresh weights; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init_seed)
        backbone = config.backbone.build(channels=config.item.channels, image_size=config.item.image_size)
        return config.algorithm.build(backbone, n_features=backbone.n_features, train_way=config.train_shape.n_way)


def build_backbone(config: ModelConfig, *, init_seed: int) -> Backbone:
    """The backbone alone with fresh weights, those that `build_learner` gives it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init_seed)
        return config.backbone.build(channels=config.item.channels, image_size=config.item.image_size)


def save_model(folder: Path, learner: Learner[Any], config: ModelConfig) -> None:
    """Write model.json and weights.safetensors into `folder`, replacing what it held."""
    weights = tensors_to_bytes(on_cpu(learner.state_dict()))
    description = {
        "format_version": _FORMAT_VERSION,
        "weights_sha256": sha256(weights).hexdigest(),
        "config": TypeAdapter(ModelConfig).dump_python(config, mode="json"),
    }
    write_folder(folder, {"weights.safetensors": weights, "model.json": json_bytes(description)})


def load_other_seeds(folder: Path) -> dict[int, SavedModel]:
    """What the same training gave from other seeds, by seed. `folder` holds a model for each, or is not there."""
    seeds = sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())
    return {seed: load_model(folder / str(seed)) for seed in seeds}


def load_model(folder: Path) -> SavedModel:
    """Read a model written by `save_model`, on the CPU, ready to adapt.

    Raises ModelError when a file is missing, of another format version, or not as it was written.
    """
    try:
        description = json.loads((folder / "model.json").read_bytes())
        weights = (folder / "weights.safetensors").read_bytes()
    except OSError as error:
        raise ModelError(f"no model in {folder} ({error.strerror}: {error.filename}); {_NO_MODEL}") from error
    except ValueError as error:
        raise ModelError(f"{folder}/model.json is not JSON ({error}); {_NO_MODEL}") from error
    if description.get("format_version") != _FORMAT_VERSION:
        raise ModelError(
            f"{folder}/model.json has format version {description.get('format_version')}; need {_FORMAT_VERSION}; "
            "next: kshot train"
        )
    found = sha256(weights).hexdigest()
    if found != description["weights_sha256"]:
        raise ModelError(
            f"{folder}/weights.safetensors has SHA-256 {found[:12]}; model.json names "
            f"{description['weights_sha256'][:12]}: the weights are not those that were saved; next: kshot train"
        )
    try:
        config = TypeAdapter(ModelConfig).validate_json(json.dumps(description["config"]))
    except PydanticError as error:
        raise ModelError(f"{folder}/model.json does not describe a model ({error}); {_NO_MODEL}") from error
    learner = build_learner(config)
    learner.load_state_dict(tensors_from_bytes(weights))
    learner.eval()
    return SavedModel(learner=learner, config=config)


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
