"""Tables of labels: a row for each picture, in CSV of any usual dialect, in text with tabs or blanks, or in JSON lines.

Which column is which is told by the user, or found by `columns.py`. Cells are text and nothing else: 001, NA and 1e3
are names of classes like any other.
"""

import codecs
import csv
import io
import json
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from kshot.data.folders import FoundFile, Parts
from kshot.errors import DataError, UnknownColumnsError
from kshot.ingest.columns import FLAG_WORDS, WAYS, Columns, found_columns, header_and_body, named
from kshot.ingest.pictures import Naming, Pictures
from kshot.printing import printable

SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl")

_DELIMITERS = ",;\t|"
_SAMPLED_ROWS = 200  # of which the delimiter is found

SeveralLabels = Literal["", "leave-out", "one-class"]
"""What becomes of a picture with several labels in its row: refused with the table, left out, or a class of its own."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a line says: "" for what it does not say. `where` is the table and the line, `picture` what `path` names.

    `fault` is why the line gives no class.
    """

    where: str
    path: str
    picture: FoundFile | None
    class_name: str
    group: str
    split: str
    fault: str = "its row names no class"


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of labels. `columns` are the headers of those that are used; `unused` are the others."""

    name: str
    columns: Columns
    unused: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def is_documented(self) -> bool:
        """Whether the headers are path and class, in any capitals, which say without doubt that it is of labels."""
        return (self.columns.path.casefold(), self.columns.class_name.casefold()) == ("path", "class")

    def __str__(self) -> str:
        used = (
            ("path", self.columns.path),
            ("class", self.columns.class_name),
            ("group", self.columns.group),
            ("split", self.columns.split),
        )
        said = ", ".join(f"{what} in {printable(header)!r}" for what, header in used if header)
        return f"{printable(self.name)} ({said})"


def read_table(
    path: Path,
    name: str,
    pictures: Pictures,
    *,
    folder: Parts = (),
    asked: Columns | None = None,
    class_folders: Collection[str] = (),
    several: SeveralLabels = "",
    splits_are_known: bool = False,
) -> Table:
    """The table in `path`, called `name`, which lies in `folder` among the pictures.

    `class_folders` are names that a column of classes may hold; `splits_are_known` without this table.
    Raises UnknownColumnsError where no column names pictures, and DataError for other doubts and damage.
    """
    asked = asked or Columns()
    lines = read_lines(path, name)
    if not lines:
        raise UnknownColumnsError(f"{name} is empty; {WAYS}")
    header, body = header_and_body(lines, pictures, folder, name)
    for number, cells in body:
        if len(cells) != len(header):
            raise DataError(
                f"{name} line {number}: found {len(cells)} column{'' if len(cells) == 1 else 's'}; "
                f"needed {len(header)}, as in its first line; next: mend that line, or leave the table out with "
                "--no-tables"
            )
    found = found_columns(
        name, header, [cells for _, cells in body], pictures, folder, asked, class_folders, splits_are_known
    )
    at = {what: header.index(column) for what, column in found.columns.items() if column}
    rows = []
    for number, cells in body:
        where = f"{name} line {number}"
        said = {what: cells[at[what]] if what in at else "" for what in ("path", "class_name", "group", "split")}
        if any("\n" in cell for cell in said.values()):
            raise DataError(f"{where}: found a cell of several lines; needed one a cell; next: close its quotes")
        if found.one_hot:
            said["class_name"] = "|".join(
                column for column in found.one_hot if FLAG_WORDS[cells[header.index(column)].casefold()]
            )
        said["split"] = found.splits.get(said["split"], said["split"])
        rows.append(Row(where=where, picture=_one_picture(pictures, said["path"], found.naming, where), **said))
    used = {*found.columns.values(), *found.one_hot}
    columns = Columns(**found.columns)
    return Table(
        name=name,
        columns=replace(columns, class_name=f"{named(found.one_hot)}: which is 1") if found.one_hot else columns,
        unused=tuple(column for column in header if column and column not in used),
        rows=tuple(_with_one_label_each(rows, several, one_hot=bool(found.one_hot))),
    )


def _with_one_label_each(rows: Sequence[Row], several: SeveralLabels, *, one_hot: bool) -> Iterable[Row]:
    """The rows, those with several labels as `several` says. Raises DataError where it says nothing."""
    labels = Counter(row.class_name for row in rows)
    with_several = {label for label in labels if label and (("|" in label) if one_hot else _is_several(label, labels))}
    if not with_several or several == "one-class":
        return rows
    if several == "leave-out":
        fault = "its row has several labels"
        return (replace(row, class_name="", fault=fault) if row.class_name in with_several else row for row in rows)
    first = next(row for row in rows if row.class_name in with_several)
    n_rows = sum(labels[label] for label in with_several)
    raise DataError(
        f"{first.where}: found several labels, {printable(first.class_name)!r}, and in {n_rows - 1:,} other rows; "
        "needed one class for each picture; next: leave these pictures out with --several-labels leave-out, or take "
        "each combination as a class with --several-labels one-class"
    )


def _is_several(label: str, labels: Mapping[str, int]) -> bool:
    """Whether a cell holds several labels: with bars or semicolons one of them, else each of them, stands elsewhere."""
    for separator in "|;":
        parts = _parts(label, separator)
        if len(parts) > 1:
            others = (other for other in labels if other != label)
            return bool(set(parts).intersection(part for other in others for part in _parts(other, separator)))
    return any(
        len(parts) > 1 and all(part in labels for part in parts)
        for parts in (_parts(label, separator) for separator in ", ")
    )


def _parts(label: str, separator: str) -> list[str]:
    return [part for part in map(str.strip, label.split(separator)) if part]


def _one_picture(pictures: Pictures, called: str, naming: Naming | None, where: str) -> FoundFile | None:
    found = pictures.find(called, naming) if naming is not None else ()
    if len(found) > 1:
        raise DataError(
            f"{where}: {printable(called)!r} may be {named([file.id for file in found])}; needed one picture; "
            "next: give the folder of the pictures with --images-in, or paths in the table"
        )
    return found[0] if found else None


def read_lines(path: Path, name: str) -> list[tuple[int, list[str]]]:
    """Number and cells of every line that is not empty, the header included. Raises DataError."""
    text = _text(path, name)
    if path.suffix.lower() == ".jsonl":
        return _json_lines(text, name)
    rows = io.StringIO(text, newline="").readlines()
    is_text = path.suffix.lower() == ".txt"
    n_comments = next((n for n, row in enumerate(rows) if not row.startswith("#")), 0) if is_text else 0
    rows[:n_comments] = ["\n"] * n_comments  # which keeps the numbers of the lines
    try:
        delimiter = _delimiter(rows, blanks=is_text)
        reader = csv.reader(rows, delimiter=delimiter, skipinitialspace=delimiter == " ", strict=True)
        return [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except csv.Error as error:
        raise DataError(f"{name} cannot be read as a CSV: {error}; next: close its quotes") from error


def _text(path: Path, name: str) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{name} cannot be read as a CSV in UTF-8: {error.strerror}") from error
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # a spreadsheet's "Unicode text"
    try:
        return content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} cannot be read as a CSV in UTF-8: {error}; next: iconv -f WINDOWS-1252 -t UTF-8 "
            f"{shlex.quote(path.name)} > utf8 && mv utf8 {shlex.quote(path.name)} (or what it is in)"
        ) from error


def _json_lines(text: str, name: str) -> list[tuple[int, list[str]]]:
    records = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            record = json.loads(line) if line.strip() else {}
        except json.JSONDecodeError as error:
            raise DataError(f"{name} line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise DataError(
                f"{name} line {number}: found {line[:40]!r}; needed an object, such as {{'file_name': ...}}"
            )
        records.append((number, record))
    header = list(dict.fromkeys(key for _, record in records for key in record))
    body = [(number, [_cell(record.get(key, "")) for key in header]) for number, record in records if record]
    return [(0, header), *body] if body else []


def _cell(value: object) -> str:
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return "|".join(value)
    return value.strip() if isinstance(value, str) else "" if value is None else json.dumps(value)


def _delimiter(rows: Sequence[str], *, blanks: bool) -> str:
    """The delimiter that cuts the most of the first lines into one number of cells, more than one; else the comma."""
    some = [row for row in rows[:_SAMPLED_ROWS] if row.strip()]
    best, best_share = ",", 0.0
    for delimiter in _DELIMITERS + " " * blanks:
        widths = [len(cells) for cells in csv.reader(some, delimiter=delimiter, skipinitialspace=delimiter == " ")]
        if not widths or widths[0] < 2:
            continue
        share = sum(width == widths[0] for width in widths) / len(widths)
        if share > best_share:
            best, best_share = delimiter, share
    return best
