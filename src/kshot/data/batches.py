"""The items of the meta_train classes with their labels, in shuffled batches.

Shapes: I items.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kshot.data.class_table import Int
from kshot.data.packed import PackedDataset
from kshot.seeding import generator, stream_key

_CALIBRATION_BATCHES = 8


@dataclass(frozen=True, kw_only=True)
class TrainItems:
    """The items (I,) of the meta_train classes and the number of each one's class (I,), in shuffled batches.

    Batch `number` is a function of the number and the seed. An epoch is a new order of all items, cut into whole
    batches; what is left over at its end is dropped.
    """

    items: Int
    labels: Int
    batch_size: int
    seed: int

    @classmethod
    def of(cls, dataset: PackedDataset, *, batch_size: int, seed: int, n_views: int = 1) -> "TrainItems":
        """`n_views` times the items and classes, as `ClassTable.with_views` numbers them."""
        table = dataset.class_table("meta_train").with_views(n_views, len(dataset.labels), len(dataset.classes))
        present = np.arange(table.items.shape[1]) < table.counts[:, None]
        return cls(items=table.items[present], labels=np.nonzero(present)[0], batch_size=batch_size, seed=seed)

    @classmethod
    def without_labels(cls, items: Int, *, batch_size: int, seed: int) -> "TrainItems":
        """The items (I,) in the order that they are given in, as if all were of one class."""
        return cls(items=items, labels=np.zeros(len(items), dtype=np.int64), batch_size=batch_size, seed=seed)

    def rows(self, number: int) -> Int:
        """Rows of batch `number` in `items` and `labels`."""
        n_batch = min(self.batch_size, len(self.items))
        epoch, place = divmod(number, len(self.items) // n_batch)
        return self._order(epoch)[place * n_batch : (place + 1) * n_batch]

    def key(self, number: int, purpose: str) -> int:
        """Names the draws of batch `number` for this purpose: int64."""
        return int(stream_key(self.seed, f"{purpose} of a batch", number).view(np.int64))

    def calibration_batches(self) -> list[Int]:
        """Items to set population statistics by: a few batches drawn apart."""
        draw = generator(self.seed, "baselines", "calibration")
        items: Int = draw.permutation(self.items)[: self.batch_size * _CALIBRATION_BATCHES]
        return np.array_split(items, max(1, len(items) // self.batch_size))

    def _order(self, epoch: int) -> Int:
        while len(self._orders) <= epoch:
            self._orders.append(self._draw.permutation(len(self.items)))
        return self._orders[epoch]

    @cached_property
    def _orders(self) -> list[Int]:
        return []

    @cached_property
    def _draw(self) -> np.random.Generator:
        return generator(self.seed, "baselines", "pretrain")
