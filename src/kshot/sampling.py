"""(labels, shape, seed, episode index) -> item indices. Vectorised over episodes; reads no image.

Every choice is a pure function of the pool's key, the episode index and a counter, so episodes are
addressable in any order. Few out of many are the first distinct numbers of a random sequence, whose cost
does not depend on how many there are; else each candidate gets a random key and the smallest are taken.

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
_MANY = 4  # times as many candidates as are drawn: a sequence of them has few repetitions


@settings(frozen=True, kw_only=True, config=STRICT)
class Uniform:
    """Every class is equally likely."""

    name: Literal["uniform"] = "uniform"

    def __str__(self) -> str:
        return ""


@settings(frozen=True, kw_only=True, config=STRICT)
class ClassWeighted:
    """Classes are drawn without replacement with weight (number of items) ** exponent.

    Exponential keys divided by weight: Efraimidis and Spirakis, "Weighted random sampling with a
    reservoir", 2006.
    """

    name: Literal["class_weighted"] = "class_weighted"
    exponent: Annotated[float, Field(ge=-4, le=4)] = 0.5

    def __str__(self) -> str:
        return f", classes by weight {self.exponent:g}"


@settings(frozen=True, kw_only=True, config=STRICT)
class WithinGroup:
    """All classes of an episode share one group (alphabet, product line); groups by number of classes."""

    name: Literal["within_group"] = "within_group"

    def __str__(self) -> str:
        return " within a group"


SamplerConfig = Annotated[Uniform | ClassWeighted | WithinGroup, Field(discriminator="name")]


@dataclass(frozen=True, kw_only=True)
class EpisodeKind:
    """What the episodes of a pool are like: their shape, and how their classes are drawn."""

    shape: EpisodeShape
    sampler: SamplerConfig

    def __str__(self) -> str:
        return f"{self.shape}{self.sampler}"


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
    chosen = _draw_classes(table, shape, sampler, key, episodes)  # (E, N)
    class_ids = table.class_ids[chosen]
    columns = _draw_items(table, shape.items_per_class, chosen, random_bits(key, _ITEMS, episodes[:, None], class_ids))
    items = table.items[chosen[:, :, None], columns]
    return EpisodeIndices(support=items[:, :, : shape.k_shot], query=items[:, :, shape.k_shot :], class_ids=class_ids)


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


def _draw_classes(
    table: ClassTable,
    shape: EpisodeShape,
    sampler: Uniform | ClassWeighted | WithinGroup,
    key: np.uint64,
    episodes: Int,
) -> Int:
    """Rows of the table (E, N), distinct within an episode."""
    n_classes = len(table.class_ids)
    if isinstance(sampler, Uniform) and n_classes > _MANY * shape.n_way:
        return _first_distinct(random_bits(key, _CLASSES, episodes), np.full(len(episodes), n_classes), shape.n_way)
    keys = uniform(key, _CLASSES, episodes[:, None], table.class_ids)
    match sampler:
        case Uniform():
            pass
        case ClassWeighted():
            keys = -np.log(keys) / table.counts.astype(np.float64) ** sampler.exponent
        case WithinGroup():
            numbers, sizes = table.group_sizes
            numbers, sizes = numbers[sizes >= shape.n_way], sizes[sizes >= shape.n_way]
            draw = random_bits(key, _GROUPS, episodes) % np.uint64(sizes.sum())
            group = numbers[np.searchsorted(np.cumsum(sizes), draw.astype(np.int64), side="right")]
            keys = np.where(table.groups == group[:, None], keys, np.inf)
    return _smallest(keys, shape.n_way)


def _draw_items(table: ClassTable, count: int, chosen: Int, keys: NDArray[np.uint64]) -> Int:
    """Columns of the table (E, N, count) for the classes `chosen` (E, N), each class's draw by its key (E, N)."""
    n_columns = table.items.shape[1]
    if n_columns > _MANY * count:
        flat = _first_distinct(keys.ravel(), table.counts[chosen].ravel(), count)
        return flat.reshape(*chosen.shape, count)
    item_keys = uniform(keys[:, :, None], np.arange(n_columns))
    if table.counts.min() < n_columns:
        item_keys[np.arange(n_columns) >= table.counts[chosen][:, :, None]] = np.inf
    return _smallest(item_keys, count)


def _first_distinct(keys: NDArray[np.uint64], sizes: Int, count: int) -> Int:
    """The first `count` distinct numbers below each of `sizes` (R,), of the random sequence that each key names."""
    n_drawn = count + 8
    while True:
        drawn = (random_bits(keys[:, None], np.arange(n_drawn)) % sizes[:, None].astype(np.uint64)).astype(np.int64)
        order = np.argsort(drawn, axis=1, kind="stable")
        in_order = np.take_along_axis(drawn, order, axis=1)
        repeated = np.zeros(drawn.shape, dtype=bool)
        np.put_along_axis(repeated, order[:, 1:], in_order[:, 1:] == in_order[:, :-1], axis=1)
        if (~repeated).sum(axis=1).min(initial=count) >= count:
            first = np.argsort(repeated, axis=1, kind="stable")[:, :count]
            return np.take_along_axis(drawn, first, axis=1)
        n_drawn *= 2


def _smallest(keys: NDArray[np.float64], count: int) -> Int:
    """Positions of the `count` smallest keys along the last axis, in order of their keys."""
    if _MANY * count >= keys.shape[-1]:
        return np.argsort(keys, axis=-1)[..., :count]
    nearest = np.argpartition(keys, count - 1, axis=-1)[..., :count]
    order = np.argsort(np.take_along_axis(keys, nearest, axis=-1), axis=-1)
    return np.take_along_axis(nearest, order, axis=-1)
