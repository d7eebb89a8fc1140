"""Task pools: sequences of episodes by index, generated on the fly or frozen to disk with a hash."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Generic, Protocol, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass as settings
from safetensors import safe_open
from safetensors.numpy import save as safetensors_bytes
from torch import Tensor

from kshot.data.class_table import ClassTable, Int
from kshot.data.views import Views
from kshot.episodes.episode import EpisodeShape
from kshot.episodes.labels import GivenLabels, InstanceLabels, TrainLabels
from kshot.episodes.sampling import (
    AnySampler,
    EpisodeIndices,
    EpisodeKind,
    SamplerConfig,
    TrainSamplerConfig,
    Uniform,
    check_feasible,
    sample_episodes,
)
from kshot.errors import DataError
from kshot.seeding import Ints, random_bits, random_words, stream_key
from kshot.settings import STRICT

_PLAIN_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
_FREEZE_AT_ONCE = 256  # episodes drawn together: bounds the size of the random keys in memory


@settings(frozen=True, kw_only=True, config=STRICT)
class TrainPoolSettings:
    """Episodes drawn on the fly from the meta_train classes, which are what `labels` says.

    With `more_shapes` every step of the training draws its shape, each as likely as `shape`. With `views` every class
    has further ones beside it, of its items turned by that many degrees or mirrored.
    """

    shape: EpisodeShape
    more_shapes: tuple[EpisodeShape, ...] = ()
    views: Views = ()
    sampler: TrainSamplerConfig = Field(default_factory=Uniform)
    labels: TrainLabels = Field(default_factory=GivenLabels)

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        if not self.has_given_labels and not isinstance(self.sampler, Uniform):
            raise ValueError(
                f"labels is {self.labels.name}, whose classes have no groups, domains or errors, and sampler is "
                f"{self.sampler.name}; next: set sampler: {{name: uniform}}"
            )
        shots = max(kind.shape.k_shot for kind in self.kinds)
        if isinstance(self.labels, InstanceLabels) and shots > 1:
            raise ValueError(
                f"labels is instances, so that a class has one item as support, and k_shot is {shots}; next: set "
                "k_shot: 1, whose model answers any number of shots, or labels: {name: clusters}"
            )
        return self

    @property
    def has_given_labels(self) -> bool:
        """Whether the labels of meta_train are used."""
        return isinstance(self.labels, GivenLabels)

    @property
    def kinds(self) -> tuple[EpisodeKind, ...]:
        n_views = len(self.views) + 1
        shapes = (self.shape, *self.more_shapes)
        return tuple(EpisodeKind(shape=shape, sampler=self.sampler, n_views=n_views) for shape in shapes)


@settings(frozen=True, kw_only=True, config=STRICT)
class ValPoolSettings:
    """Frozen episodes of the meta_val classes, for model selection."""

    shape: EpisodeShape
    n_episodes: Annotated[int, Field(ge=2)]
    sampler: SamplerConfig = Field(default_factory=Uniform)


@settings(frozen=True, kw_only=True, config=STRICT)
class TestSetting:
    """One row of the results. `sampler` where it is not the one of meta_test."""

    n_way: Annotated[int, Field(ge=2)]
    k_shot: Annotated[int, Field(ge=1)]
    sampler: SamplerConfig | None = None

    @property
    def name(self) -> str:
        """Such as 5w1s, 5w1s-within_group or 5w1s-class_weighted_1.0: part of names of files and metrics.

        A key of many or unusual names of domains is replaced by its SHA-256, of which 12 digits remain.
        """
        if self.sampler is None:
            return f"{self.n_way}w{self.k_shot}s"
        key = self.sampler.key_name
        if not _PLAIN_NAME.fullmatch(key):
            key = f"{self.sampler.name}-{sha256(key.encode()).hexdigest()[:12]}"
        return f"{self.n_way}w{self.k_shot}s-{key}"


@settings(frozen=True, kw_only=True, config=STRICT)
class TestPoolSettings:
    """Frozen episodes of the meta_test classes, one pool for each setting."""

    n_episodes: Annotated[int, Field(ge=2)]
    n_query: Annotated[int, Field(ge=1)]
    settings: Annotated[tuple[TestSetting, ...], Field(min_length=1)]
    sampler: SamplerConfig = Field(default_factory=Uniform)

    @model_validator(mode="after")
    def _check_distinct(self) -> Self:
        named, kinds = [setting.name for setting in self.settings], list(self.kinds().values())
        twice = [name for name in dict.fromkeys(named) if named.count(name) > 1]
        twice += [str(kind) for kind in dict.fromkeys(kinds) if kinds.count(kind) > 1]
        if twice:
            raise ValueError(f"{twice[0]} stands there twice; need different settings")
        return self

    def kinds(self) -> dict[str, EpisodeKind]:
        """The episodes of each setting, by its name."""
        return {
            setting.name: EpisodeKind(
                shape=EpisodeShape(n_way=setting.n_way, k_shot=setting.k_shot, n_query=self.n_query),
                sampler=setting.sampler or self.sampler,
            )
            for setting in self.settings
        }


@settings(frozen=True, kw_only=True, config=STRICT)
class TaskPoolSettings:
    """`seed` draws the frozen pools alone: runs that differ in params.seed are scored on the same episodes."""

    seed: Annotated[int, Field(ge=0)] = 1
    meta_train: TrainPoolSettings
    meta_val: ValPoolSettings
    meta_test: TestPoolSettings

    def kinds(self) -> dict[str, tuple[EpisodeKind, ...]]:
        """Every configured kind of episode, by split."""
        return {
            "meta_train": self.meta_train.kinds,
            "meta_val": (EpisodeKind(shape=self.meta_val.shape, sampler=self.meta_val.sampler),),
            "meta_test": tuple(self.meta_test.kinds().values()),
        }

    def kinds_by_label(self) -> dict[str, tuple[EpisodeKind, ...]]:
        """Those of the splits whose labels are used: what the classes of a dataset have to allow."""
        return {
            split: kinds
            for split, kinds in self.kinds().items()
            if split != "meta_train" or self.meta_train.has_given_labels
        }


class TaskPool(Protocol):
    """A sequence of episodes of one shape, addressable in any order."""

    @property
    def shape(self) -> EpisodeShape: ...

    def episodes(self, numbers: range) -> EpisodeIndices[Any]:
        """The episodes numbered `numbers`, which are consecutive."""
        ...


@dataclass(frozen=True, kw_only=True)
class SampledPool(Generic[Ints]):
    """An endless pool: episode i is drawn when asked for, where the table lies, and is always the same."""

    table: ClassTable[Ints]
    shape: EpisodeShape
    sampler: AnySampler
    key: np.uint64

    @classmethod
    def of_split(
        cls, table: ClassTable[Ints], shape: EpisodeShape, sampler: AnySampler, *, seed: int, split: str
    ) -> "SampledPool[Ints]":
        how = () if isinstance(sampler, Uniform) else (sampler.key_name,)  # so that no two settings share their draws
        key = stream_key(seed, "task_pool", split, shape.key_name, *how)
        return cls(table=table, shape=shape, sampler=sampler, key=key)

    def on(self, device: torch.device) -> "SampledPool[Tensor]":
        """The same episodes, drawn on `device`. Raises EpisodeError where the table allows none."""
        check_feasible(self.table, self.shape, self.sampler)
        return SampledPool(table=self.table.on(device), shape=self.shape, sampler=self.sampler, key=self.key)

    def episodes(self, numbers: range) -> EpisodeIndices[Ints]:
        return sample_episodes(self.table, self.shape, self.sampler, self.key, self.table.numbers(numbers))

    def freeze(self: "SampledPool", n_episodes: int) -> "FrozenPool":
        """The first `n_episodes` episodes, as a pool that can be saved."""
        parts = [
            self.episodes(range(start, min(start + _FREEZE_AT_ONCE, n_episodes)))
            for start in range(0, n_episodes, _FREEZE_AT_ONCE)
        ]
        indices = EpisodeIndices(
            support=np.concatenate([part.support for part in parts]),
            query=np.concatenate([part.query for part in parts]),
            class_ids=np.concatenate([part.class_ids for part in parts]),
            keys=_keys_by_position(n_episodes),
        )
        return FrozenPool(indices=indices, shape=self.shape)


class ReadAhead:
    """A pool whose episodes are drawn in blocks, so that many small requests cost as little as a few large ones."""

    def __init__(self, pool: TaskPool, n_block: int = 64) -> None:
        self._pool, self._n_block = pool, n_block
        self._held, self._block = range(0), pool.episodes(range(0))

    @property
    def shape(self) -> EpisodeShape:
        return self._pool.shape

    def episodes(self, numbers: range) -> EpisodeIndices[Any]:
        if len(numbers) >= self._n_block:
            return self._pool.episodes(numbers)
        if not self._held.start <= numbers.start <= numbers.stop <= self._held.stop:
            self._held = range(numbers.start, numbers.start + self._n_block)
            self._block = self._pool.episodes(self._held)
        return self._block[numbers.start - self._held.start : numbers.stop - self._held.start]


class MixedShapes:
    """Pools of several shapes as one: every step of `per_step` episodes draws one of them, by `key` and its number."""

    def __init__(self, pools: Sequence[TaskPool], per_step: int, key: np.uint64) -> None:
        self._pools, self._per_step, self._key = pools, per_step, key

    @property
    def largest(self) -> TaskPool:
        """The pool of the shape with the most items."""
        return max(self._pools, key=lambda pool: pool.shape.n_way * pool.shape.items_per_class)

    @property
    def shape(self) -> EpisodeShape:
        """The largest."""
        return self.largest.shape

    def episodes(self, numbers: range) -> EpisodeIndices[Any]:
        """Of the shape of the step that the first number is in."""
        drawn = int(random_bits(self._key, numbers.start // self._per_step))
        return self._pools[drawn % len(self._pools)].episodes(numbers)


@dataclass(frozen=True, kw_only=True)
class FrozenPool:
    """A fixed list of episodes; two models scored on it are scored on the very same episodes."""

    indices: EpisodeIndices
    shape: EpisodeShape

    def __len__(self) -> int:
        return len(self.indices)

    def episodes(self, numbers: range) -> EpisodeIndices:
        return self.indices[numbers.start : numbers.stop]

    def to_bytes(self) -> bytes:
        """The file's content: a pure function of the episodes."""
        tensors = {
            "support": self.indices.support.astype(np.int32),
            "query": self.indices.query.astype(np.int32),
            "class_ids": self.indices.class_ids.astype(np.int32),
        }
        shape = {"n_way": self.shape.n_way, "k_shot": self.shape.k_shot, "n_query": self.shape.n_query}
        return safetensors_bytes(tensors, metadata={"shape": json.dumps(shape)})

    @property
    def hash(self) -> str:
        """SHA-256 of the file's content, 64 hex digits."""
        return sha256(self.to_bytes()).hexdigest()

    @classmethod
    def load(cls, path: Path) -> "FrozenPool":
        """Read a pool; raises DataError when the file is missing or is not a pool."""
        try:
            with safe_open(path, framework="numpy") as file:
                shape: Mapping[str, Any] = json.loads(file.metadata()["shape"])
                arrays = {name: file.get_tensor(name).astype(np.int64) for name in ("support", "query", "class_ids")}
        except FileNotFoundError:
            raise DataError(f"no task pool at {path}; next: kshot pool") from None
        except Exception as error:
            raise DataError(f"{path} is not a task pool ({error}); next: kshot pool") from error
        indices = EpisodeIndices(**arrays, keys=_keys_by_position(len(arrays["class_ids"])))
        return cls(indices=indices, shape=EpisodeShape(**shape))


def _keys_by_position(n_episodes: int) -> Int:
    """The keys of frozen episodes: a file holds none, and two models scored on them get the same."""
    return random_words(0, np.arange(n_episodes))
