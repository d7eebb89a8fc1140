"""Making packed datasets. To add a built-in source: a file here and a line of this table."""

from kshot.ingest import glyphs, omniglot
from kshot.ingest.built_in import BuiltIn
from kshot.ingest.pack import IngestReport, SplitRequest, ingest, ingest_built_in

BUILT_IN: dict[str, BuiltIn] = {
    "glyphs": glyphs.BUILT_IN,
    "omniglot": omniglot.BUILT_IN,
}

__all__ = ["BUILT_IN", "BuiltIn", "IngestReport", "SplitRequest", "ingest", "ingest_built_in"]
