"""(labels, shape, seed, episode index) -> item indices. Vectorised over episodes; reads no image.

Every choice is a pure function of the pool's key, the episode index and a counter, so episodes are
addressable in any order. A few out of many are the first distinct numbers of a random sequence, whose cost
does not depend on how many there are; otherwise each candidate gets a random key and the smallest are taken.

The same lines draw on the host, from a table of NumPy arrays, and on the device of a table of tensors, and
both draw the same episodes. Nothing here waits for a device.

Shapes: E episodes, N way, K shot, Q queries per class, C classes, M items of the largest class.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field, PlainSerializer
from pydantic.dataclasses import dataclass as settings
from torch import Tensor

from kshot.data.class_table import ClassTable, Int, _numbers
from kshot.episodes.episode import EpisodeShape
from kshot.errors import EpisodeError
from kshot.printing import counted, listed
from kshot.seeding import Ints, random_bits, random_words
from kshot.settings import STRICT

_CLASSES, _ITEMS, _GROUPS, _NOISE, _DOMAINS = 0, 1, 2, 3, 4  # the draws of an episode, as the first counter
_MANY = 4  # times as many candidates as are drawn: a sequence of them has few repetitions
_PLACE_BITS, _NUMBER_BITS = 22, 40  # of a place in a sequence and of the number there, packed into one
_KEY_BITS = 53
_DOMAIN_BITS = 12  # of a rank, taken from the key of an item
_USUAL_EXPONENT = 0.5
_OF_WEIGHT = 2**20  # weights of domains are whole numbers of this part, whose sums are the same everywhere
_LEAST_WEIGHT, _MOST_WEIGHT = 0.001, 1000.0


def _pairs(weights: Any) -> Any:
    """A mapping as pairs in the order of their names, so that what holds it can be hashed.

    A weight is checked here, where its name can be said. A smaller one than the least would be rounded to 0.
    """
    if not isinstance(weights, dict | tuple):
        raise ValueError("need domains and their weights, such as {glyphs: 1, emoji: 3}")
    pairs = sorted(dict(weights).items())
    for name, weight in pairs:
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not (weight == 0 or _LEAST_WEIGHT <= weight <= _MOST_WEIGHT):
            raise ValueError(
                f"{name!r} has the weight {weight!r}; need 0 or a number from {_LEAST_WEIGHT:g} to {_MOST_WEIGHT:g}"
            )
    return tuple(pairs)


@settings(frozen=True, kw_only=True, config=STRICT)
class Uniform:
    """Every class is equally likely."""

    name: Literal["uniform"] = "uniform"

    @property
    def key_name(self) -> str:
        """What this sampler is called in names of settings and in the key of a pool's draws; it must never change."""
        return "uniform"

    def __str__(self) -> str:
        return ""


@settings(frozen=True, kw_only=True, config=STRICT)
class ClassWeighted:
    """Classes are drawn without replacement with weight (number of items) ** exponent.

    Exponential keys divided by weight: Efraimidis and Spirakis, "Weighted random sampling with a
    reservoir", 2006.
    """

    name: Literal["class_weighted"] = "class_weighted"
    exponent: Annotated[float, Field(ge=-4, le=4)] = _USUAL_EXPONENT

    @property
    def key_name(self) -> str:
        """As for `Uniform`. Every exponent but the usual one is part of it, so that no two share their draws."""
        return "class_weighted" if self.exponent == _USUAL_EXPONENT else f"class_weighted_{self.exponent!r}"

    def __str__(self) -> str:
        return f", classes by weight {self.exponent:g}"


@settings(frozen=True, kw_only=True, config=STRICT)
class WithinGroup:
    """All classes of an episode share one group (alphabet, product line); groups by number of classes."""

    name: Literal["within_group"] = "within_group"

    @property
    def key_name(self) -> str:
        """As for `Uniform`."""
        return "within_group"

    def __str__(self) -> str:
        return " within a group"


@settings(frozen=True, kw_only=True, config=STRICT)
class AcrossDomains:
    """Support from one domain, queries from others, as far as the items of a class allow; classes are equally likely.

    Each episode puts the domains in an order of its own. Of a class, the support are the first of its items in that
    order and the queries are the last; items of one domain come in random order.
    """

    name: Literal["across_domains"] = "across_domains"

    @property
    def key_name(self) -> str:
        """As for `Uniform`."""
        return "across_domains"

    def __str__(self) -> str:
        return " across domains"


@settings(frozen=True, kw_only=True, config=STRICT)
class WithinDomain:
    """All items of an episode are of one domain, such as one dataset of a union; its classes are equally likely.

    A domain is drawn with its weight, 1 where none is given. One that no weight is given for, and that allows no such
    episode, is passed over.
    """

    name: Literal["within_domain"] = "within_domain"
    weights: Annotated[tuple[tuple[str, float], ...], BeforeValidator(_pairs), PlainSerializer(dict)] = ()

    @property
    def key_name(self) -> str:
        """As for `Uniform`, with the weights."""
        return "_".join(["within_domain", *(f"{name}_{weight!r}" for name, weight in self.weights)])

    def __str__(self) -> str:
        weights = ", ".join(f"{name} {weight:g}" for name, weight in self.weights)
        return " within a domain" + (f": {weights}" if weights else "")


@settings(frozen=True, kw_only=True, config=STRICT)
class HardClasses:
    """Classes are drawn without replacement with weight (error rate) ** exponent, as data/difficulty/NAME.json has it.

    `difficulty` is the NAME: what `kshot difficulty NAME` kept of the errors of an earlier model.
    """

    name: Literal["hard_classes"] = "hard_classes"
    difficulty: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]
    exponent: Annotated[float, Field(gt=0, le=4)] = 1.0

    @property
    def key_name(self) -> str:
        """As for `Uniform`."""
        return f"hard_classes_{self.difficulty}_{self.exponent!r}"

    def __str__(self) -> str:
        return f", hard classes by {self.difficulty}, weight {self.exponent:g}"


@dataclass(frozen=True, kw_only=True)
class WithinPartition:
    """All classes of an episode are of one group, each group is equally likely, and rows of a group lie together.

    No choice of a user's: the groups are partitions of the same items, see `clusters`.
    """

    name: Literal["within_partition"] = "within_partition"

    @property
    def key_name(self) -> str:
        """As for `Uniform`."""
        return "within_partition"

    def __str__(self) -> str:
        return " within a partition"


OfAnyClasses = Uniform | ClassWeighted | WithinGroup | AcrossDomains | WithinDomain
AnySampler = OfAnyClasses | HardClasses | WithinPartition
SamplerConfig = Annotated[OfAnyClasses, Field(discriminator="name")]
TrainSamplerConfig = Annotated[
    OfAnyClasses | HardClasses, Field(discriminator="name")
]  # of classes that an earlier model learned from


@dataclass(frozen=True, kw_only=True)
class EpisodeKind:
    """What the episodes of a pool are like: their shape, how their classes are drawn, and how many views each has."""

    shape: EpisodeShape
    sampler: AnySampler
    n_views: int = 1

    def __str__(self) -> str:
        return f"{self.shape}{self.sampler}"


@dataclass(frozen=True, kw_only=True)
class EpisodeIndices(Generic[Ints]):
    """Which items make up E episodes: support (E, N, K), query (E, N, Q), class_ids (E, N).

    Position n on the N axis is label n of the episode; its class is drawn at random, so labels say
    nothing about classes. keys (E,) name the further random draws of each episode, see `EpisodeBatch`.
    """

    support: Ints
    query: Ints
    class_ids: Ints
    keys: Ints

    def __len__(self) -> int:
        return len(self.class_ids)

    def __getitem__(self, episodes: slice | Int) -> "EpisodeIndices[Ints]":
        return EpisodeIndices(
            support=self.support[episodes],
            query=self.query[episodes],
            class_ids=self.class_ids[episodes],
            keys=self.keys[episodes],
        )


def sample_episodes(
    table: ClassTable[Ints],
    shape: EpisodeShape,
    sampler: AnySampler,
    key: np.uint64,
    episodes: Ints,
) -> EpisodeIndices[Ints]:
    """Draw the episodes numbered `episodes` (E,).

    Support and query of an episode never share an item. Raises EpisodeError when the table holds too
    few classes, or too few items in a class.
    """
    check_feasible(table, shape, sampler)
    domain = _draw_domain(table, shape, sampler, key, episodes) if isinstance(sampler, WithinDomain) else None
    chosen = _draw_classes(table, shape, sampler, key, episodes, domain)  # (E, N)
    class_ids = table.class_ids[chosen]
    keys = random_words(_draw_key(key, _ITEMS), episodes[:, None], class_ids)
    if isinstance(sampler, AcrossDomains):
        columns = _draw_across_domains(table, shape, chosen, keys, _domain_ranks(table, key, episodes))
    elif domain is not None:
        columns = _draw_within_domain(table, shape, chosen, keys, domain)
    else:
        columns = _draw_items(table, shape.items_per_class, chosen, keys)
    items = table.items_at(chosen[:, :, None], columns)
    return EpisodeIndices(
        support=items[:, :, : shape.k_shot],
        query=items[:, :, shape.k_shot :],
        class_ids=class_ids,
        keys=random_words(_draw_key(key, _NOISE), episodes),
    )


def check_feasible(table: ClassTable[Ints], shape: EpisodeShape, sampler: AnySampler) -> None:
    """Raise EpisodeError unless every class has K+Q items and N classes can be drawn together.

    What can only be seen in the arrays of a table is checked before it goes to a device.
    """
    if isinstance(sampler, WithinDomain):
        if not isinstance(table.items, Tensor):
            _domain_weights(table, shape, sampler)
        return
    if isinstance(sampler, WithinPartition) and table.smallest_group < shape.n_way:
        raise EpisodeError(
            f"a partition of meta_train has {counted(table.smallest_group, 'cluster')} of at least "
            f"{shape.items_per_class} items; {shape} with {shape.n_query} queries needs {shape.n_way}; next: lower "
            "pseudo_labels.n_clusters, or n_way or n_query of task_pool.meta_train"
        )
    if table.smallest_class < shape.items_per_class:
        raise EpisodeError(
            f"{int((table.counts < shape.items_per_class).sum())} classes have fewer than {shape.items_per_class} "
            f"items, the smallest {table.smallest_class}; {shape} with {shape.n_query} queries needs them"
        )
    if len(table.class_ids) < shape.n_way:
        raise EpisodeError(f"found {len(table.class_ids)} classes; {shape} needs {shape.n_way}")
    if isinstance(sampler, WithinGroup) and table.largest_group < shape.n_way:
        raise EpisodeError(
            f"the largest group has {table.largest_group} classes; {shape} within a group needs {shape.n_way}"
        )
    if isinstance(sampler, AcrossDomains) and len(table.domain_names) < 2:
        raise EpisodeError(
            f"found {counted(len(table.domain_names), 'domain')}; episodes across domains need at least 2; "
            "next: ingest with --layout domain/class, or another sampler"
        )


def _domain_weights(table: ClassTable[Any], shape: EpisodeShape, sampler: WithinDomain) -> list[float]:
    """(D,) how likely each domain is, in proportion; 0 where it allows no such episode."""
    given, names = dict(sampler.weights), table.domain_names
    if table.domain_counts is None:
        raise EpisodeError(
            "found no domains; episodes within a domain need them; next: ingest with --layout domain/class, or "
            "another sampler"
        )
    unknown = next((name for name in given if name not in names), None)
    if unknown is not None:
        raise EpisodeError(f"sampler.weights names the domain {unknown!r}; needed one of {listed(names, len(names))}")
    n_classes = (table.domain_counts >= shape.items_per_class).sum(1).tolist()
    short = [name for name, n in zip(names, n_classes, strict=True) if n < shape.n_way]
    wanted = next((name for name in short if given.get(name)), None)
    weights = [0.0 if name in short else given.get(name, 1.0) for name in names]
    if wanted is not None or not any(weights):
        name = wanted or names[int(np.argmax(n_classes))]
        raise EpisodeError(
            f"the domain {name!r} has {counted(n_classes[names.index(name)], 'class')} of at least "
            f"{shape.items_per_class} items; {shape} with {shape.n_query} queries within a domain needs {shape.n_way}; "
            "next: fewer classes or queries, or weight 0 for it"
        )
    return weights


def _draw_domain(
    table: ClassTable[Ints], shape: EpisodeShape, sampler: WithinDomain, key: np.uint64, episodes: Ints
) -> Ints:
    """The domain (E,) of each episode."""
    counts = table.domain_counts
    assert counts is not None, "a sampler within a domain is checked against the table"
    given = dict(sampler.weights)
    weights = [round(given.get(name, 1.0) * _OF_WEIGHT) for name in table.domain_names]
    allowed = (counts >= shape.items_per_class).sum(1) >= shape.n_way  # (D,)
    reached = (allowed * _like(weights, counts)).cumsum(0)
    draw = _below(reached[-1], random_words(_draw_key(key, _DOMAINS), episodes))
    domain: Ints = _library(counts).searchsorted(reached, draw, side="right")
    return domain


def _draw_key(key: np.uint64, draw: int) -> int:
    return int(random_bits(key, draw).view(np.int64))


def _draw_classes(
    table: ClassTable[Ints],
    shape: EpisodeShape,
    sampler: AnySampler,
    key: np.uint64,
    episodes: Ints,
    domain: Ints | None,
) -> Ints:
    """Rows of the table (E, N), distinct within an episode; of those that `domain` (E,) has enough items of, if any."""
    n_classes, classes_key = len(table.class_ids), _draw_key(key, _CLASSES)
    if isinstance(sampler, Uniform | AcrossDomains) and n_classes > _MANY * shape.n_way:
        return _first_distinct(random_words(classes_key, episodes), n_classes, shape.n_way, smallest=n_classes)
    if isinstance(sampler, WithinPartition):
        partition = _below(len(table.group_sizes), random_words(_draw_key(key, _GROUPS), episodes))
        sizes = table.group_sizes[partition]
        first = table.group_sizes.cumsum(0)[partition] - sizes
        words, least = random_words(classes_key, episodes), table.smallest_group
        return first[:, None] + _first_distinct(words, sizes[:, None], shape.n_way, smallest=least)
    keys = _sort_keys(random_words(classes_key, episodes[:, None], table.class_ids))
    library = _library(keys)
    match sampler:
        case Uniform() | AcrossDomains():
            pass
        case ClassWeighted():
            keys = _weighted(keys, library.asarray(table.counts, dtype=library.float64) ** sampler.exponent)
        case HardClasses():
            assert table.error_rates is not None, "the table of a sampler of hard classes has them"
            keys = _weighted(keys, table.error_rates**sampler.exponent)
        case WithinGroup():
            sizes = library.where(table.group_sizes >= shape.n_way, table.group_sizes, 0)
            draw = _below(sizes.sum(), random_words(_draw_key(key, _GROUPS), episodes))
            group = library.searchsorted(sizes.cumsum(0), draw, side="right")
            keys = library.where(table.groups == group[:, None], keys, 1 << _KEY_BITS)
        case WithinDomain():
            assert table.domain_counts is not None, "a sampler within a domain is checked against the table"
            enough = table.domain_counts[domain] >= shape.items_per_class
            keys = library.where(enough, keys, 1 << _KEY_BITS)
    return _smallest(keys, shape.n_way)


def _weighted(keys: Any, weights: Any) -> Any:
    """Keys of which the smallest belong to classes drawn without replacement by weight, see `ClassWeighted`."""
    library = _library(keys)
    return -library.log((library.asarray(keys, dtype=library.float64) + 0.5) * 2.0**-_KEY_BITS) / weights


def _draw_items(table: ClassTable[Ints], count: int, chosen: Ints, keys: Ints) -> Ints:
    """Columns of the table (E, N, count) for the classes `chosen` (E, N), each class's draw by its key (E, N)."""
    n_columns = table.largest_class
    if n_columns > _MANY * count:
        sizes = table.counts[chosen].reshape(-1, 1)
        columns = _first_distinct(keys.reshape(-1), sizes, count, smallest=table.smallest_class)
        return columns.reshape(*chosen.shape, count)
    columns = _numbers(0, n_columns, like=keys)
    item_keys = _sort_keys(random_words(keys[:, :, None], columns))
    if table.smallest_class < n_columns:
        absent = columns >= table.counts[chosen][:, :, None]
        item_keys = _library(keys).where(absent, 1 << _KEY_BITS, item_keys)
    return _smallest(item_keys, count)


def _domain_ranks(table: ClassTable[Ints], key: np.uint64, episodes: Ints) -> Ints:
    """The rank (E, domains) of each domain in the order that each episode puts them in."""
    n_domains = len(table.domain_names)
    domains = _numbers(0, n_domains, like=episodes)
    keys = _sort_keys(random_words(random_words(_draw_key(key, _DOMAINS), episodes)[:, None], domains))
    return _smallest(_smallest(keys, n_domains), n_domains)  # the inverse of the order


def _draw_across_domains(table: ClassTable[Ints], shape: EpisodeShape, chosen: Ints, keys: Ints, ranks: Ints) -> Ints:
    """Columns of the table (E, N, K + Q): the first K items and the last Q in the episode's order of domains."""
    assert table.domains is not None, "a sampler across domains is checked against the table"
    columns = _numbers(0, table.items.shape[1], like=keys)
    item_keys = _sort_keys(random_words(keys[:, :, None], columns)) >> _DOMAIN_BITS
    episode = _numbers(0, len(chosen), like=keys)[:, None, None]
    order = ranks[episode, table.domains[chosen]] << _KEY_BITS - _DOMAIN_BITS | item_keys
    absent = columns >= table.counts[chosen][:, :, None]
    places: Ints = _library(keys).where(absent, 1 << 62, order).argsort(-1)
    first = _numbers(0, shape.k_shot, like=keys)
    last = table.counts[chosen][:, :, None] - 1 - _numbers(0, shape.n_query, like=keys)
    library = _library(keys)
    at: Ints = library.concatenate([library.broadcast_to(first, (*chosen.shape, shape.k_shot)), last], -1)
    return _taken(places, at)


def _draw_within_domain(table: ClassTable[Ints], shape: EpisodeShape, chosen: Ints, keys: Ints, domain: Ints) -> Ints:
    """Columns of the table (E, N, K + Q), of items of the episode's domain (E,)."""
    assert table.domains is not None, "a sampler within a domain is checked against the table"
    columns = _numbers(0, table.items.shape[1], like=keys)
    others = table.domains[chosen] != domain[:, None, None]
    item_keys: Ints = _sort_keys(random_words(keys[:, :, None], columns))
    item_keys = _library(keys).where(others, 1 << _KEY_BITS, item_keys)
    return _smallest(item_keys, shape.items_per_class)


def _taken(values: Ints, at: Ints) -> Ints:
    """The values (..., M) at positions (..., m) of the last axis."""
    if isinstance(values, Tensor):
        gathered: Ints = values.gather(-1, at)
        return gathered
    taken: Ints = np.take_along_axis(values, at, axis=-1)
    return taken


def _first_distinct(keys: Ints, sizes: Ints | int, count: int, *, smallest: int) -> Ints:
    """The first `count` distinct numbers (R, count) of the random sequence that each key (R,) names.

    They are below `sizes`, (R, 1) or one for all, of which `smallest` is the least.
    """
    n_drawn = _surely_enough(count, smallest) if isinstance(keys, Tensor) else count + 8
    while True:
        places = _numbers(0, n_drawn, like=keys)
        drawn = _sorted(_below(sizes, random_words(keys[:, None], places)) << _PLACE_BITS | places)
        number, place = drawn >> _PLACE_BITS, drawn & (1 << _PLACE_BITS) - 1
        new = place << _NUMBER_BITS | number
        repeated = number[:, 1:] == number[:, :-1]
        new[:, 1:] |= repeated * (1 << _NUMBER_BITS + _PLACE_BITS)  # to the end of the order
        if isinstance(keys, Tensor) or repeated.sum(axis=1).max(initial=0) <= n_drawn - count:
            return _sorted(new)[:, :count] & (1 << _NUMBER_BITS) - 1
        n_drawn *= 2


def _surely_enough(count: int, size: int) -> int:
    """How many random numbers below `size` hold `count` distinct ones, except once in 2**64 times.

    Otherwise all of them lie in some set of `count` - 1 numbers. The chance of that is at most the number of such
    sets times the chance of one.
    """
    if count == 1:
        return 1
    return math.ceil((64 + math.log2(math.comb(size, count - 1))) / math.log2(size / (count - 1)))


def _smallest(keys: Ints, count: int) -> Ints:
    """Positions of the `count` smallest keys along the last axis, in order of their keys."""
    if isinstance(keys, Tensor):
        return keys.topk(count, largest=False).indices
    if _MANY * count >= keys.shape[-1]:
        return np.argsort(keys, axis=-1)[..., :count]
    nearest = np.argpartition(keys, count - 1, axis=-1)[..., :count]
    order = np.argsort(np.take_along_axis(keys, nearest, axis=-1), axis=-1)
    return np.take_along_axis(nearest, order, axis=-1)


def _below(size: Any, words: Ints) -> Ints:
    """The remainders of random words, read as unsigned."""
    half: Ints = (words >> 1 & (1 << 63) - 1) % size
    below: Ints = (half * 2 + (words & 1)) % size
    return below


def _sort_keys(words: Ints) -> Ints:
    """Below 2**_KEY_BITS, so that a key above all others and a float64 of each have room."""
    return words >> 64 - _KEY_BITS & (1 << _KEY_BITS) - 1


def _like(numbers: list[int], array: Ints) -> Ints:
    """As an array where `array` lies."""
    if isinstance(array, Tensor):
        return torch.tensor(numbers, device=array.device)
    return np.array(numbers)


def _library(array: Ints) -> Any:
    return torch if isinstance(array, Tensor) else np


def _sorted(numbers: Ints) -> Ints:
    return numbers.sort(-1).values if isinstance(numbers, Tensor) else np.sort(numbers)
