"""Packed datasets: reading them, and making them from a user's images or a built-in source."""

from kshot.datasets import glyphs, omniglot
from kshot.datasets.images import open_checked, read_item, to_item
from kshot.datasets.ingest import BuiltIn, IngestReport, SplitRequest, ingest, ingest_built_in
from kshot.datasets.packed import SPLITS, DatasetInfo, ItemSpec, PackedDataset, Quarantined, Splits
from kshot.datasets.splits import SeededSplits, read_splits

BUILT_IN: dict[str, BuiltIn] = {
    "glyphs": BuiltIn(
        item=glyphs.ITEM,
        rotations=(0,),
        source=glyphs.SOURCE,
        licence=glyphs.LICENCE,
        n_items=glyphs.N_IMAGES,
        records=glyphs.records,
        splits=glyphs.splits,
    ),
    "omniglot": BuiltIn(
        item=omniglot.ITEM,
        rotations=(0, 90, 180, 270),
        source=omniglot.SOURCE,
        licence=omniglot.LICENCE,
        n_items=omniglot.N_IMAGES,
        records=omniglot.records,
        splits=omniglot.splits,
    ),
}

__all__ = [
    "BUILT_IN",
    "SPLITS",
    "BuiltIn",
    "DatasetInfo",
    "IngestReport",
    "ItemSpec",
    "PackedDataset",
    "Quarantined",
    "SeededSplits",
    "SplitRequest",
    "Splits",
    "ingest",
    "ingest_built_in",
    "open_checked",
    "read_item",
    "read_splits",
    "to_item",
]
