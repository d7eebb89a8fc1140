"""What a source is to ingest: how to read it, and what was understood of it."""

from dataclasses import dataclass, field
from pathlib import Path

from kshot.data.folders import LeftOut, Refused
from kshot.ingest.columns import Columns
from kshot.ingest.layout import Layout
from kshot.ingest.tables import SeveralLabels


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How to read a source, where the user says so; what he leaves open is found out.

    pictures: the folder in which the pictures of a table lie. tables: False to take classes from folders alone.
    several: what becomes of a picture whose row has several labels. draw_splits: splits that the source gives are not
    used. splits_are_given: for every class, from elsewhere. names: the encoding of an archive's names.
    """

    columns: Columns = field(default_factory=Columns)
    pictures: Path | None = None
    tables: bool = True
    layout: Layout = ()
    keep_masks: bool = False
    several: SeveralLabels = ""
    draw_splits: bool = False
    splits_are_given: bool = False
    names: str = ""


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    id: str
    class_name: str
    group: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Source:
    """What was understood of a source.

    words: how it was read, in words. given_splits: of each class whose split the source gives, where they are used.
    split_words: by what the source gives splits, or "". domain_level: which part of an id names the domain of the item.
    remarks: what else a user should know.
    refused: what was meant as an item and is none. left_out: what was not meant as an item.
    """

    name: str
    words: str
    files: tuple[SourceFile, ...]
    given_splits: dict[str, str] = field(default_factory=dict)
    split_words: str = ""
    domain_level: int | None = None
    remarks: tuple[str, ...] = ()
    refused: tuple[Refused, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
