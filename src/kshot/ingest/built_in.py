"""What a built-in dataset is; a file of `kshot.ingest` gives one, and the table there lists it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kshot.data.items import AnyItemKind
from kshot.data.packed import Rotations, Splits
from kshot.ingest.writer import Record


@dataclass(frozen=True, kw_only=True)
class BuiltIn:
    """A dataset that kshot knows how to make or fetch: `records` yields its `n_items` items in a fixed order."""

    item: AnyItemKind
    rotations: Rotations = (0,)
    domain_level: int | None = None
    source: str
    licence: str
    n_items: int
    records: Callable[[], Iterator[Record]]
    splits: Callable[[], Splits]
