"""Making packed datasets. To add a built-in source: a file here and a line of this table."""

from kshot.ingest import emoji, glyphs, omniglot
from kshot.ingest.built_in import BuiltIn
from kshot.ingest.columns import Columns
from kshot.ingest.layout import read_layout
from kshot.ingest.pack import IngestReport, ingest, ingest_built_in, pack
from kshot.ingest.source import Reading
from kshot.ingest.splits import SplitRequest

BUILT_IN: dict[str, BuiltIn] = {
    "emoji": emoji.BUILT_IN,
    "emoji-seen": emoji.SEEN,
    "emoji-unseen": emoji.UNSEEN,
    "glyphs": glyphs.BUILT_IN,
    "omniglot": omniglot.BUILT_IN,
}

__all__ = [
    "BUILT_IN",
    "BuiltIn",
    "Columns",
    "IngestReport",
    "Reading",
    "SplitRequest",
    "ingest",
    "ingest_built_in",
    "pack",
    "read_layout",
]
