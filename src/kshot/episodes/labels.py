"""What the classes of the training episodes are: the given labels of meta_train, or something made without them.

Shapes: I items of meta_train, C classes.
"""

from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass as settings

from kshot.data.class_table import ClassTable, Int
from kshot.data.packed import PackedDataset
from kshot.settings import STRICT


@settings(frozen=True, kw_only=True, config=STRICT)
class GivenLabels:
    """The classes of the dataset."""

    name: Literal["given"] = "given"

    def __str__(self) -> str:
        return "the labels of meta_train"


@settings(frozen=True, kw_only=True, config=STRICT)
class InstanceLabels:
    """Each item is a class of its own: it is the support, and its augmented copies are the queries.

    Khodadadeh, Boloni and Shah, "Unsupervised Meta-Learning for Few-Shot Image Classification" (UMTRA), 2019,
    algorithm 1, which draws N items at random and hopes that they are of different classes. The augmentation is that
    of `meta_train.augment.query`; a query has the key of its place in the episode.
    """

    name: Literal["instances"] = "instances"

    def __str__(self) -> str:
        return "single items and their augmented copies"


@settings(frozen=True, kw_only=True, config=STRICT)
class ClusterLabels:
    """The classes are clusters of the items' features, which the stage pseudo_labels makes, see `clusters` (CACTUs)."""

    name: Literal["clusters"] = "clusters"

    def __str__(self) -> str:
        return "clusters of the features of its items"


TrainLabels = Annotated[GivenLabels | InstanceLabels | ClusterLabels, Field(discriminator="name")]


def without_labels(labels: TrainLabels) -> str:
    """What reports and the model card say of a training that did not use the labels of meta_train."""
    return f"none used in meta_train; the classes of its episodes are {labels}"


def train_items(dataset: PackedDataset) -> Int:
    """(I,) the items of meta_train in their order, which tells nothing of their classes."""
    table = dataset.class_table("meta_train")
    return np.sort(table.items[np.arange(table.items.shape[1]) < table.counts[:, None]])


def instance_table(dataset: PackedDataset, items_per_class: int) -> ClassTable:
    """A class for each item of meta_train, with the number of the item, which stands in it `items_per_class` times."""
    items = train_items(dataset)
    n_classes = np.arange(len(items))
    one_each = ClassTable.from_labels(n_classes, n_classes, np.zeros(len(items), dtype=np.int64))
    return replace(
        one_each,
        class_ids=items,
        items=np.repeat(items[:, None], items_per_class, axis=1),
        counts=np.full(len(items), items_per_class),
        smallest_class=items_per_class,
        largest_class=items_per_class,
    )
