"""The classes of a split as arrays, for samplers to draw from."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic

import numpy as np
from numpy.typing import NDArray

from kshot.seeding import Ints

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Int = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ClassTable(Generic[Ints]):
    """The classes that episodes may draw from, and the items of each.

    class_ids (C,) numbers of the classes in the dataset, items (C, M) item indices padded with -1, counts (C,)
    items per class, groups (C,) position of each class's group in group_sizes, group_sizes (G,) classes per group.
    domains (C, M) number of each item's domain in `domain_names`, domain_counts (D, C) items of each class in each
    domain; None and no names where items have none. error_rates (C,) how often each class is confused, float64; None
    where nobody asked. With starts (C,) items is (I,) instead, and class c has its items from starts[c] on: of very
    unequal classes nothing is padded.
    """

    class_ids: Ints
    items: Ints
    counts: Ints
    groups: Ints
    group_sizes: Ints
    smallest_class: int
    largest_class: int
    smallest_group: int
    largest_group: int
    starts: Ints | None = None
    domains: Ints | None = None
    domain_counts: Ints | None = None
    domain_names: tuple[str, ...] = ()
    error_rates: "NDArray[np.float64] | Tensor | None" = None

    @classmethod
    def from_labels(
        cls,
        labels: Int,
        class_ids: Int,
        class_groups: Int,
        domains: Int | None = None,
        domain_names: tuple[str, ...] = (),
    ) -> "ClassTable[Int]":
        """From the class of every item (items,), the classes to use (C,), the group of every class, and domains."""
        class_ids = np.asarray(class_ids, dtype=np.int64)
        order = np.argsort(labels, kind="stable")
        starts = np.searchsorted(labels[order], class_ids, side="left")
        counts = np.searchsorted(labels[order], class_ids, side="right") - starts
        columns = np.arange(max(counts.max(initial=0), 1))
        present = columns < counts[:, None]
        positions = np.where(present, starts[:, None] + columns, 0)
        items = np.where(present, order[positions] if len(order) else 0, -1)
        of_items = None if domains is None else np.where(present, domains[items], -1)
        counts_of = (
            [] if of_items is None else [(of_items == number).sum(axis=1) for number in range(len(domain_names))]
        )
        _, groups, group_sizes = np.unique(np.asarray(class_groups)[class_ids], return_inverse=True, return_counts=True)
        return ClassTable(
            class_ids=class_ids,
            items=items.astype(np.int64),
            counts=counts.astype(np.int64),
            groups=groups.astype(np.int64),
            group_sizes=group_sizes.astype(np.int64),
            smallest_class=int(counts.min(initial=len(order))),
            largest_class=len(columns),
            smallest_group=int(group_sizes.min(initial=len(class_ids))),
            largest_group=int(group_sizes.max(initial=0)),
            domains=of_items,
            domain_counts=np.stack(counts_of) if counts_of else None,
            domain_names=domain_names,
        )

    def with_views(self: "ClassTable[Int]", n_views: int, n_items: int, n_classes: int) -> "ClassTable[Int]":
        """The classes `n_views` times, of a dataset of these numbers: view v of item i is item v * n_items + i."""
        if n_views == 1:
            return self
        assert self.starts is None, "found a table without padding; its views are made with it"
        views = np.arange(n_views)
        items = np.where(self.items < 0, -1, views[:, None, None] * n_items + self.items)
        return replace(
            self,
            class_ids=(views[:, None] * n_classes + self.class_ids).ravel(),
            items=items.reshape(-1, self.items.shape[1]),
            counts=np.tile(self.counts, n_views),
            groups=np.tile(self.groups, n_views),
            group_sizes=self.group_sizes * n_views,
            smallest_group=self.smallest_group * n_views,
            largest_group=self.largest_group * n_views,
            domains=None if self.domains is None else np.tile(self.domains, (n_views, 1)),
            domain_counts=None if self.domain_counts is None else np.tile(self.domain_counts, (1, n_views)),
            error_rates=None if self.error_rates is None else np.tile(self.error_rates, n_views),
        )

    def items_at(self, classes: Ints, columns: Ints) -> Ints:
        """The items at places `columns` of the classes in rows `classes`, of their broadcast shape."""
        items: Ints = (
            self.items[classes, columns] if self.starts is None else self.items[self.starts[classes] + columns]
        )
        return items

    def on(self, device: "torch.device") -> "ClassTable[Tensor]":
        """The same table as tensors on `device`, where its episodes are drawn."""
        import torch

        return ClassTable(
            class_ids=torch.as_tensor(self.class_ids, device=device),
            items=torch.as_tensor(self.items, device=device),
            counts=torch.as_tensor(self.counts, device=device),
            groups=torch.as_tensor(self.groups, device=device),
            group_sizes=torch.as_tensor(self.group_sizes, device=device),
            smallest_class=self.smallest_class,
            largest_class=self.largest_class,
            smallest_group=self.smallest_group,
            largest_group=self.largest_group,
            starts=None if self.starts is None else torch.as_tensor(self.starts, device=device),
            domains=None if self.domains is None else torch.as_tensor(self.domains, device=device),
            domain_counts=None if self.domain_counts is None else torch.as_tensor(self.domain_counts, device=device),
            domain_names=self.domain_names,
            error_rates=None if self.error_rates is None else torch.as_tensor(self.error_rates, device=device),
        )

    def numbers(self, numbers: range) -> Ints:
        """Consecutive numbers as an array beside those of the table."""
        assert numbers.step == 1, "found a range with gaps"
        return _numbers(numbers.start, numbers.stop, like=self.class_ids)


def _numbers(start: int, stop: int, *, like: Ints) -> Ints:
    if isinstance(like, np.ndarray):
        return np.arange(start, stop)
    import torch

    return torch.arange(start, stop, device=like.device)
