"""(labels, shape, seed, episode index) -> item indices. Vectorised over episodes; reads no image.

Every choice is "give each candidate a random key, take the smallest": a pure function of the pool's
key, the episode index and the candidate's number, so episodes are addressable in any order.

Shapes: E episodes, N way, K shot, Q queries a class, C classes, M items of the largest class.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass as settings

from kshot.episode import EpisodeShape
from kshot.errors import EpisodeError
from kshot.seeding import random_bits, uniform
from kshot.settings import STRICT

Int = NDArray[np.int64]
_CLASSES, _ITEMS, _GROUPS = 0, 1, 2  # the three draws of an episode, as the first counter


@settings(frozen=True, kw_only=True, config=STRICT)
class Uniform:
    """Every class is equally likely."""

    name: Literal["uniform"] = "uniform"


@settings(frozen=True, kw_only=True, config=STRICT)
class ClassWeighted:
    """Classes are drawn without replacement with weight (number of items) ** exponent.

    Exponential keys divided by weight: Efraimidis and Spirakis, "Weighted random sampling with a
    reservoir", 2006.
    """

    name: Literal["class_weighted"] = "class_weighted"
    exponent: Annotated[float, Field(ge=-4, le=4)] = 0.5


@settings(frozen=True, kw_only=True, config=STRICT)
class WithinGroup:
    """All classes of an episode share one group (alphabet, product line); groups by number of classes."""

    name: Literal["within_group"] = "within_group"


SamplerConfig = Annotated[Uniform | ClassWeighted | WithinGroup, Field(discriminator="name")]


@dataclass(frozen=True, kw_only=True)
class EpisodeIndices:
    """Which items make up E episodes: support (E, N, K), query (E, N, Q), class_ids (E, N).

    Position n on the N axis is label n of the episode; its class is drawn at random, so labels say
    nothing about classes.
    """

    support: Int
    query: Int
    class_ids: Int

    def __len__(self) -> int:
        return len(self.class_ids)

    def __getitem__(self, episodes: slice | Int) -> "EpisodeIndices":
        return EpisodeIndices(
            support=self.support[episodes], query=self.query[episodes], class_ids=self.class_ids[episodes]
        )


@dataclass(frozen=True)
class ClassTable:
    """The classes that episodes may draw from, and the items of each.

    class_ids (C,) numbers of the classes in the dataset, items (C, M) item indices padded with -1,
    counts (C,) items a class, groups (C,) group number a class.
    """

    class_ids: Int
    items: Int
    counts: Int
    groups: Int

    @classmethod
    def from_labels(cls, labels: Int, class_ids: Int, class_groups: Int) -> "ClassTable":
        """From the class of every item (items,), the classes to use (C,) and the group of every class."""
        class_ids = np.asarray(class_ids, dtype=np.int64)
        order = np.argsort(labels, kind="stable")
        starts = np.searchsorted(labels[order], class_ids, side="left")
        counts = np.searchsorted(labels[order], class_ids, side="right") - starts
        columns = np.arange(max(counts.max(initial=0), 1))
        present = columns < counts[:, None]
        positions = np.where(present, starts[:, None] + columns, 0)
        items = np.where(present, order[positions] if len(order) else 0, -1)
        return cls(class_ids, items.astype(np.int64), counts.astype(np.int64), np.asarray(class_groups)[class_ids])

    @cached_property
    def group_sizes(self) -> tuple[Int, Int]:
        """Group numbers and the number of classes in each."""
        numbers, sizes = np.unique(self.groups, return_counts=True)
        return numbers, sizes


def sample_episodes(
    table: ClassTable,
    shape: EpisodeShape,
    sampler: Uniform | ClassWeighted | WithinGroup,
    key: np.uint64,
    episodes: Int,
) -> EpisodeIndices:
    """Draw the episodes numbered `episodes` (E,).

    Support and query of an episode never share an item. Raises EpisodeError when the table holds too
    few classes, or too few items in a class.
    """
    check_feasible(table, shape, sampler)
    episodes = np.asarray(episodes, dtype=np.int64)
    chosen = _smallest(_class_keys(table, shape, sampler, key, episodes), shape.n_way)  # (E, N)
    item_keys = uniform(
        key, _ITEMS, episodes[:, None, None], table.class_ids[chosen][:, :, None], np.arange(table.items.shape[1])
    )
    item_keys[np.arange(table.items.shape[1]) >= table.counts[chosen][:, :, None]] = np.inf
    columns = _smallest(item_keys, shape.items_per_class)  # (E, N, K+Q)
    items = table.items[chosen[:, :, None], columns]
    return EpisodeIndices(
        support=items[:, :, : shape.k_shot], query=items[:, :, shape.k_shot :], class_ids=table.class_ids[chosen]
    )


def check_feasible(table: ClassTable, shape: EpisodeShape, sampler: Uniform | ClassWeighted | WithinGroup) -> None:
    """Raise EpisodeError unless every class has K+Q items and N classes can be drawn together."""
    short = table.counts < shape.items_per_class
    if short.any():
        raise EpisodeError(
            f"{int(short.sum())} classes have fewer than {shape.items_per_class} items, "
            f"the smallest {int(table.counts.min())}; {shape} with {shape.n_query} queries needs them"
        )
    if len(table.class_ids) < shape.n_way:
        raise EpisodeError(f"found {len(table.class_ids)} classes; {shape} needs {shape.n_way}")
    if isinstance(sampler, WithinGroup) and table.group_sizes[1].max() < shape.n_way:
        raise EpisodeError(
            f"the largest group has {int(table.group_sizes[1].max())} classes; "
            f"{shape} within a group needs {shape.n_way}"
        )


def _class_keys(
    table: ClassTable,
    shape: EpisodeShape,
    sampler: Uniform | ClassWeighted | WithinGroup,
    key: np.uint64,
    episodes: Int,
) -> NDArray[np.float64]:
    """Random keys (E, C); classes that an episode may not use get infinity."""
    keys = uniform(key, _CLASSES, episodes[:, None], table.class_ids)
    match sampler:
        case Uniform():
            return keys
        case ClassWeighted():
            return -np.log(keys) / table.counts.astype(np.float64) ** sampler.exponent
        case WithinGroup():
            numbers, sizes = table.group_sizes
            numbers, sizes = numbers[sizes >= shape.n_way], sizes[sizes >= shape.n_way]
            draw = random_bits(key, _GROUPS, episodes) % np.uint64(sizes.sum())
            group = numbers[np.searchsorted(np.cumsum(sizes), draw.astype(np.int64), side="right")]
            return np.where(table.groups == group[:, None], keys, np.inf)


def _smallest(keys: NDArray[np.float64], count: int) -> Int:
    """Positions of the `count` smallest keys along the last axis, in order of their keys."""
    if count < keys.shape[-1]:
        nearest = np.argpartition(keys, count - 1, axis=-1)[..., :count]
    else:
        nearest = np.broadcast_to(np.arange(keys.shape[-1]), keys.shape)
    order = np.argsort(np.take_along_axis(keys, nearest, axis=-1), axis=-1, kind="stable")
    return np.take_along_axis(nearest, order, axis=-1)
