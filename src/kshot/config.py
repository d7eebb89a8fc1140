"""params.yaml -> typed settings. The only reader of that file."""

import json
import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, TypeAdapter, model_validator
from pydantic import ValidationError as PydanticError
from pydantic.dataclasses import dataclass as settings

from kshot.algorithms import AlgorithmConfig
from kshot.algorithms.ensemble import EnsembleConfig, NoEnsemble, SeedsEnsemble
from kshot.algorithms.maths.losses import CrossEntropyConfig, LossConfig
from kshot.backbones import BackboneConfig
from kshot.backbones.layers.adapter import AdapterConfig, NoAdapter
from kshot.episodes.augmentation import EpisodeAugmentation
from kshot.episodes.clusters import NoPseudoLabels, PseudoLabelConfig
from kshot.episodes.copies import AtTestTime
from kshot.episodes.labels import ClusterLabels, InstanceLabels
from kshot.episodes.pools import TaskPoolSettings
from kshot.errors import ConfigError
from kshot.evaluation.scoring import EvaluationSettings
from kshot.promotion.settings import PromotionSettings
from kshot.runtime.process import ProcessSettings
from kshot.settings import STRICT
from kshot.training.loop import TrainingSettings
from kshot.training.pretraining import NoPretraining, PretrainConfig, SupervisedPretraining
from kshot.validation.settings import FactSettings
from kshot.yaml_file import read_yaml

_MOVED = {
    "meta_train.backbone": "backbone",
    "meta_train.seeds": "seeds",
    "meta_train.n_processes": "process.n_processes",
    "meta_train.device": "process.device",
    "meta_train.keep_freed_memory": "process.keep_freed_memory",
    "meta_train.native_kernels": "process.native_kernels",
    "evaluate.pretrain_steps": "pretrain: {name: supervised, n_steps: ...}",
}
_SHOWN = 80  # characters of a wrong value


def _digits(value: Any) -> Any:
    """A name of digits alone is a whole number to YAML, with the same text to DVC."""
    return str(value) if type(value) is int else value


DatasetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$"), BeforeValidator(_digits)]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"), BeforeValidator(_digits)]


@settings(frozen=True, kw_only=True, config=STRICT)
class DatasetSettings:
    """`of` are the datasets that the one called `name` is the union of; without, it is one of its own."""

    name: DatasetName
    of: tuple[DatasetName, ...] = ()

    @model_validator(mode="after")
    def _check_members(self) -> Self:
        if self.of and (len(set(self.of)) < max(len(self.of), 2) or self.name in self.of):
            raise ValueError("dataset.of lists two or more datasets, each once, and dataset.name is another name")
        return self


@settings(frozen=True, kw_only=True, config=STRICT)
class MetaTrainSettings:
    algorithm: AlgorithmConfig
    adapter: AdapterConfig = Field(default_factory=NoAdapter)  # on top of the backbone
    loss: LossConfig = Field(default_factory=CrossEntropyConfig)  # of the queries of an episode
    augment: EpisodeAugmentation = Field(default_factory=EpisodeAugmentation)  # of the items of training
    test_time: AtTestTime = Field(default_factory=AtTestTime)  # copies of items when the trained model is asked
    ensemble: EnsembleConfig = Field(default_factory=NoEnsemble)  # several trained models that answer as one
    initial: Literal["random", "pretrained"]  # the backbone's weights before the first step
    training: TrainingSettings


@settings(frozen=True, kw_only=True, config=STRICT)
class RegisterSettings:
    model_name: ModelName
    promotion: PromotionSettings = Field(default_factory=PromotionSettings)


@settings(frozen=True, kw_only=True, config=STRICT)
class Params:
    """Every setting of a run, one section for each stage."""

    seed: Annotated[int, Field(ge=0)]
    dataset: DatasetSettings
    validate: FactSettings
    task_pool: TaskPoolSettings
    backbone: BackboneConfig
    pretrain: PretrainConfig
    pseudo_labels: PseudoLabelConfig
    meta_train: MetaTrainSettings
    evaluate: EvaluationSettings
    seeds: tuple[Annotated[int, Field(ge=0)], ...]  # train from each of these too, to measure the spread over seeds
    cross_domain: tuple[DatasetName, ...]  # other packed datasets, on whose held-out classes to score as well
    process: ProcessSettings = Field(default_factory=ProcessSettings)  # of no stage: it does not change what is learned
    register: RegisterSettings

    @model_validator(mode="after")
    def _check_seeds(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds) or self.seed in self.seeds:
            raise ValueError("seeds lists other seeds than seed, each once")
        return self

    @model_validator(mode="after")
    def _check_initial(self) -> Self:
        is_none = isinstance(self.pretrain, NoPretraining)
        if self.meta_train.initial == "pretrained" and is_none and not self.backbone.weights:
            raise ValueError(
                "meta_train.initial is pretrained; need a pretrain.name other than none, or backbone.weights; "
                "next: set pretrain: {name: supervised, n_steps: 2000}"
            )
        if self.meta_train.initial == "random" and self.backbone.weights:
            raise ValueError(
                f"backbone.weights is {self.backbone.weights}, and meta_train.initial is random, which would not use "
                "them; next: set meta_train.initial: pretrained"
            )
        return self

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        """Where the labels of meta_train are not used for the episodes, nothing else may bring them in."""
        labels = self.task_pool.meta_train.labels
        if isinstance(labels, InstanceLabels) and not self.meta_train.augment.of_queries:
            raise ValueError(
                "task_pool.meta_train.labels is instances, and meta_train.augment changes no query, so that each would "
                "be its support; next: set meta_train.augment: {query: [{name: affine}, {name: noise}]}"
            )
        is_supervised = isinstance(self.pretrain, SupervisedPretraining)
        if not self.task_pool.meta_train.has_given_labels and is_supervised and self.meta_train.initial != "random":
            raise ValueError(
                f"task_pool.meta_train.labels is {labels.name}, and meta_train.initial is pretrained by the labels of "
                "meta_train; next: set pretrain: {name: simclr, n_steps: 2000}, or meta_train.initial: random"
            )
        return self

    @model_validator(mode="after")
    def _check_pseudo_labels(self) -> Self:
        """Who asks for clusters has to say of what, and no label of meta_train may be in that."""
        clustering, labels = self.pseudo_labels, self.task_pool.meta_train.labels
        if isinstance(clustering, NoPseudoLabels):
            if isinstance(labels, ClusterLabels):
                raise ValueError(
                    "task_pool.meta_train.labels is clusters, and pseudo_labels is none, so that there are none; next: "
                    "set pseudo_labels: {name: kmeans, features: values, n_clusters: 500}"
                )
            return self
        if not isinstance(labels, ClusterLabels):
            raise ValueError(
                f"pseudo_labels is {clustering.name}, and task_pool.meta_train.labels is {labels.name}, which would "
                "not use them; next: set labels: {name: clusters}, or pseudo_labels: {name: none}"
            )
        if clustering.features == "values":
            return self
        if isinstance(self.pretrain, NoPretraining) and not self.backbone.weights:
            raise ValueError(
                "pseudo_labels.features is pretrained; need a pretrain.name other than none, or backbone.weights; "
                "next: set pretrain: {name: simclr, n_steps: 2000}, or pseudo_labels.features: values"
            )
        if isinstance(self.pretrain, SupervisedPretraining):
            raise ValueError(
                "pseudo_labels.features is pretrained, by the labels of meta_train; need a pretraining without them; "
                "next: set pretrain: {name: simclr, n_steps: 2000}, or pseudo_labels.features: values"
            )
        return self

    @model_validator(mode="after")
    def _check_promotion(self) -> Self:
        is_none = isinstance(self.pretrain, NoPretraining)
        if self.register.promotion.beat_pretrained and is_none and not self.backbone.weights:
            raise ValueError(
                "register.promotion.beat_pretrained is true; need a pretrain.name other than none, or weights; "
                "next: set pretrain: {name: supervised, n_steps: 2000}"
            )
        return self

    @model_validator(mode="after")
    def _check_untrained(self) -> Self:
        """Where no step is taken, the weights have to come from elsewhere, and no seed matters."""
        if self.meta_train.training.n_steps > 0:
            return self
        if self.meta_train.initial == "random":
            raise ValueError(
                "meta_train.training.n_steps is 0 and meta_train.initial is random, so that nothing trains the "
                "backbone; need pretrained weights; next: set meta_train.initial: pretrained and "
                "pretrain: {name: supervised, n_steps: 2000}, or meta_train.training.n_steps: 600"
            )
        if not isinstance(self.meta_train.adapter, NoAdapter):
            raise ValueError(
                f"meta_train.adapter is {self.meta_train.adapter.name} and meta_train.training.n_steps is 0, so that "
                "nothing trains it; next: set n_steps: 500, or take meta_train.adapter out"
            )
        if not isinstance(self.meta_train.ensemble, NoEnsemble):
            raise ValueError(
                f"meta_train.ensemble is {self.meta_train.ensemble.name} and meta_train.training.n_steps is 0, so that "
                "all its members would be the same; next: set n_steps: 600, or take meta_train.ensemble out"
            )
        if self.seeds:
            raise ValueError(
                f"seeds is {list(self.seeds)} and meta_train.training.n_steps is 0, so that every seed gives the same "
                "model; next: set seeds: []"
            )
        return self

    @model_validator(mode="after")
    def _check_ensemble(self) -> Self:
        ensemble = self.meta_train.ensemble
        if not isinstance(ensemble, SeedsEnsemble):
            return self
        if self.seed in ensemble.of:
            raise ValueError("meta_train.ensemble.of lists other seeds than seed, each once")
        if self.seeds:
            raise ValueError(
                f"seeds is {list(self.seeds)} and meta_train.ensemble is seeds, so that models of several seeds would "
                "share members; next: set seeds: [], or take meta_train.ensemble out"
            )
        return self

    @model_validator(mode="after")
    def _check_cross_domain(self) -> Self:
        if len(set(self.cross_domain)) < len(self.cross_domain) or self.dataset.name in self.cross_domain:
            raise ValueError("cross_domain lists other datasets than dataset.name, each once")
        return self


def load_params(path: Path) -> Params:
    """Read and check a params file. Raises ConfigError with the full path of the first bad key."""
    try:
        raw = read_yaml(path)
    except FileNotFoundError:
        raise ConfigError(
            f"no {path}; need a params file; next: run in the project folder, or kshot preset demo"
        ) from None
    return params_from(raw, source=str(path))


def params_from(raw: Any, *, source: str) -> Params:
    """Settings from the parsed content of a params file called `source`."""
    try:
        return TypeAdapter(Params).validate_json(json.dumps(raw, allow_nan=False))
    except PydanticError as error:
        raise ConfigError(f"{source}: {_one_line(error, raw)}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {error}; need plain YAML values") from error


def _one_line(error: PydanticError, raw: Any) -> str:
    """The first thing that is wrong, and how many more there are."""
    first = error.errors()[0]
    key = ".".join(map(str, _without_tags(first["loc"], raw)))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    found = f"{key} is {_shown(first['input'])}"
    match first["type"]:
        case "value_error" if not key:  # what sections say together
            return f"{first['msg'].removeprefix('Value error, ')}{more}"
        case "unexpected_keyword_argument" | "extra_forbidden":
            hint = f"; it is {_MOVED[key]} now" if key in _MOVED else _nearest(first["loc"])
            return f"unknown key {key}{hint}{more}"
        case "missing" | "missing_argument":
            return f"{key} is missing{more}"
        case "union_tag_not_found":
            return f"{key}.name is missing{more}"
        case "union_tag_invalid":
            tag, known = first["ctx"]["tag"], first["ctx"]["expected_tags"]
            matches = get_close_matches(tag.lower(), re.findall(r"'(.+?)'", known), n=1)
            hint = f"; did you mean {matches[0]}?" if matches else ""
            return f"{key}.name is '{tag}'; need one of {known}{hint}{more}"
        case "string_type":
            return f"{found}; need a text: put quotes around it{more}"
        case "value_error" if isinstance(first["input"], dict | list):
            return f"{key}: {first['msg'].replace('Value error, ', '')}{more}"
        case "bool_type":
            return f"{found}; need true or false{more}"
        case _:
            return f"{found}; {first['msg'].replace('Input should be', 'need').replace('Value error, ', '')}{more}"


def _shown(value: Any) -> str:
    """As it stands in the file, as far as JSON can tell."""
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _without_tags(location: tuple[int | str, ...], raw: Any) -> Iterator[int | str]:
    """The parts of a location that are keys of the file: pydantic adds the name of the chosen alternative."""
    node = raw
    for part in location:
        if isinstance(node, dict) and part not in node and node.get("name") == part:
            continue
        yield part
        if isinstance(node, dict):
            node = node.get(part)
        else:
            node = node[part] if isinstance(node, list) and isinstance(part, int) else None


def _nearest(location: tuple[int | str, ...]) -> str:
    """The known setting whose name is nearest to the unknown key, as a suggestion."""
    known = _known_keys(location[:-1])
    matches = get_close_matches(str(location[-1]), known, n=1)
    return f"; did you mean {matches[0]}?" if matches else f"; known: {', '.join(sorted(known))}"


def _known_keys(section: tuple[int | str, ...]) -> list[str]:
    """Names of the settings that the section at this path may hold."""
    schema = TypeAdapter(Params).json_schema()
    node = schema
    for part in section:
        node = _resolve(schema, node, part)
    return list(node.get("properties", {}))


def _resolve(schema: dict[str, Any], node: dict[str, Any], part: int | str) -> dict[str, Any]:
    """One step down the JSON schema: a property, a list item, or a tagged alternative."""
    if "properties" in node and part in node["properties"]:
        node = node["properties"][part]
    elif "discriminator" in node:
        node = {"$ref": node["discriminator"]["mapping"].get(part, "")}
    elif "items" in node:
        node = node["items"]
    reference = str(node.get("$ref", ""))
    resolved: dict[str, Any] = schema["$defs"][reference.split("/")[-1]] if reference else node
    return resolved
