"""Making packed datasets. To add a built-in source: a file here and a row in this table."""

from kshot.ingest import glyphs, omniglot
from kshot.ingest.pack import BuiltIn, IngestReport, SplitRequest, ingest, ingest_built_in

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

__all__ = ["BUILT_IN", "BuiltIn", "IngestReport", "SplitRequest", "ingest", "ingest_built_in"]
