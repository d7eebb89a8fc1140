"""A learner as a value: what it is made of, how it is built, saved and loaded.

On disk it is a folder with the tensors as safetensors, the rest as JSON, and the SHA-256 of the weights.
Damage is found by that hash: safetensors loads a file with flipped bits silently.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, TypeAdapter
from pydantic import ValidationError as PydanticError
from pydantic.dataclasses import dataclass as settings
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from kshot.algorithms import AlgorithmConfig, Learner
from kshot.algorithms.ensemble import ensemble_of
from kshot.algorithms.learner import Problem
from kshot.algorithms.maths.losses import EpisodeLoss, query_cross_entropy
from kshot.algorithms.unknown import UnknownRule
from kshot.backbones import BackboneConfig, Conv4Config, ResNet12Config
from kshot.backbones.contract import Backbone
from kshot.backbones.layers.adapter import AdapterConfig, NoAdapter
from kshot.backbones.layers.norm import NormName
from kshot.data.items import AnyItemKind, ImageKind
from kshot.episodes.copies import AtTestTime
from kshot.episodes.episode import EpisodeShape
from kshot.errors import ConfigError, ModelError
from kshot.runtime.files import json_bytes, write_folder
from kshot.settings import STRICT

_FORMAT_VERSION = 1
_NO_MODEL = "next: kshot train, or name a folder that holds model.json and weights.safetensors"


@settings(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """What a learner is made of: enough to build it again and to feed it."""

    algorithm: AlgorithmConfig
    backbone: BackboneConfig
    adapter: AdapterConfig = Field(default_factory=NoAdapter, exclude_if=lambda adapter: adapter == NoAdapter())
    test_time: AtTestTime = Field(default_factory=AtTestTime, exclude_if=lambda how: how == AtTestTime())
    members: int = Field(default=1, exclude_if=lambda members: members == 1)  # of an ensemble
    item: AnyItemKind
    train_shape: EpisodeShape
    n_train_classes: int | None = (
        None  # None where no classifier of them was trained, and in models of before it was kept
    )

    @property
    def problem(self) -> Problem:
        return Problem(train_shape=self.train_shape, n_train_classes=self.n_train_classes)

    @property
    def beside_mode(self) -> dict[str, NormName]:
        """What a score says beside its mode: the norm of the backbone, where that is another than that of batches."""
        chosen = self.backbone.norm if isinstance(self.backbone, Conv4Config | ResNet12Config) else "batch"
        return {} if chosen == "batch" else {"norm": chosen}


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """A learner with what it is made of, and what to divide its logits by in each normalisation mode.

    `temperatures` were fitted on meta_val, so that probabilities can be believed, and `unknown` was chosen there, which
    tells items of no class; a model that was saved before they were kept has none.
    """

    learner: Learner[Any]
    config: ModelConfig
    temperatures: Mapping[str, float] = field(default_factory=dict)
    unknown: UnknownRule | None = None

    @property
    def item(self) -> AnyItemKind:
        return self.config.item

    def on(self, device: torch.device) -> "SavedModel":
        """The same with the learner moved to `device`."""
        self.learner.to(device)
        return self


def build_learner(config: ModelConfig, loss: EpisodeLoss = query_cross_entropy, *, init_seed: int = 0) -> Learner[Any]:
    """A learner with fresh weights, to be trained with `loss`; the same seed gives the same weights.

    An ensemble is built to be loaded: all its members have the weights of one seed.
    Raises ConfigError where it cannot be built for such items.
    """
    if not config.test_time.changes_nothing and not isinstance(config.item, ImageKind):
        raise ConfigError(
            f"meta_train.test_time is given, and the items are {config.item}; needed images; "
            "next: take meta_train.test_time out"
        )
    if config.members > 1:
        return ensemble_of([build_learner(replace(config, members=1), loss) for _ in range(config.members)])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init_seed)
        backbone = config.adapter.build(config.backbone.build(config.item))
        learner: Learner[Any] = config.algorithm.build(backbone, config.problem, loss)
    learner.test_time = config.test_time
    return learner


def build_backbone(config: ModelConfig, *, init_seed: int) -> Backbone:
    """The backbone alone, without an adapter, with fresh weights, those that `build_learner` gives it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init_seed)
        return config.backbone.build(config.item)


def save_model(folder: Path, model: SavedModel) -> None:
    """Write model.json and weights.safetensors into `folder`, replacing what it held."""
    weights = tensors_to_bytes(on_cpu(model.learner.state_dict()))
    description = {
        "format_version": _FORMAT_VERSION,
        "weights_sha256": sha256(weights).hexdigest(),
        "config": TypeAdapter(ModelConfig).dump_python(model.config, mode="json"),
        "temperatures": dict(model.temperatures),
        **(
            {}
            if model.unknown is None
            else {"unknown": TypeAdapter(UnknownRule).dump_python(model.unknown, mode="json")}
        ),
    }
    write_folder(folder, {"weights.safetensors": weights, "model.json": json_bytes(description)})


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
        unknown = TypeAdapter(UnknownRule | None).validate_json(json.dumps(description.get("unknown")))
    except PydanticError as error:
        raise ModelError(f"{folder}/model.json does not describe a model ({error}); {_NO_MODEL}") from error
    learner = build_learner(config)
    learner.load_state_dict(tensors_from_bytes(weights))
    learner.eval()
    return SavedModel(learner=learner, config=config, temperatures=description.get("temperatures", {}), unknown=unknown)


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
