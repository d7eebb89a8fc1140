"""Finds the pictures that a table names. One way of naming holds for all rows of a column: that which finds the most.

So a row whose picture is missing finds nothing, and never another picture that happens to be called alike. Names may
lack their folder, their extension or first folders of another machine, and differ in capitals.
"""

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from kshot.data.folders import FoundFile, Parts

_LOOKED_AT = 50  # pictures of one name
_NEARLY_ALL = 0.95


@dataclass(frozen=True, kw_only=True)
class Naming:
    """How a column names pictures: without its first `cut` parts, a path in `folder`, or None for one in any folder."""

    cut: int
    folder: Parts | None
    within: Parts  # the table's own folder


class Pictures:
    """Pictures of a folder by their paths and names, with and without extension.

    `masks` are the ids of those that are named as masks: one is meant only where no other picture is.
    """

    def __init__(self, files: Sequence[FoundFile], masks: Collection[str] = ()) -> None:
        self.files = tuple(files)
        self._masks = frozenset(masks)
        self._by_path: dict[str, list[FoundFile]] = {}
        self._by_end: dict[str, list[FoundFile]] = {}  # the name, and the name with its folder
        for file in self.files:
            for name in dict.fromkeys((file.name, _stem(file.name))):
                parts = (*file.folders, name)
                for key in _keys("/".join(parts)):
                    self._by_path.setdefault(key, []).append(file)
                for end in {parts[-1:], parts[-2:]}:
                    for key in _keys("/".join(end)):
                        self._by_end.setdefault(key, []).append(file)

    def naming(self, cells: Sequence[str], within: Parts) -> Naming | None:
        """How `cells` of a table that lies in the folder `within` name pictures; None where they name none."""
        votes: Counter[tuple[int, Parts]] = Counter()
        n_naming = 0
        for cell in dict.fromkeys(cells):
            found = {(cut, folder) for cut, folder in self._readings(cell, within)}
            votes.update(found)
            n_naming += bool(found)
        if not votes:
            return None
        literal = (0, within)
        best = max(votes, key=lambda reading: (votes[reading], reading == literal, not reading[1], -reading[0]))
        if 2 * votes[literal] >= n_naming:
            best = literal
        n_best = sum(n == votes[best] for n in votes.values())
        scattered = best != literal and (n_best > 1 or votes[best] < _NEARLY_ALL * n_naming)
        return Naming(cut=best[0], folder=None if scattered else best[1], within=within)

    def find(self, called: str, naming: Naming) -> tuple[FoundFile, ...]:
        """The pictures that `called` means: one, but for a name that several have."""
        parts = _parts(called)[naming.cut :]
        if ".." in parts:
            inside = _resolved((*naming.within, *_parts(called)))
            return self._first(self._by_path, inside) if inside else ()
        if not parts:
            return ()
        if naming.folder is not None:
            return self._first(self._by_path, (*naming.folder, *parts))
        found = tuple(
            file
            for file in self._first(self._by_end, parts[-2:])
            if _is_within(file, naming.within) and _n_shared(file, parts) == len(parts) - 1
        )
        return tuple(file for file in found if file.id not in self._masks) or found

    def n_named(self, cells: Sequence[str], naming: Naming) -> int:
        """How many of the cells, each once, name a picture."""
        return sum(bool(self.find(cell, naming)) for cell in dict.fromkeys(cells))

    def _readings(self, cell: str, within: Parts) -> Iterator[tuple[int, Parts]]:
        """Each way in which `cell` may name a picture: how many parts are cut, and in which folder the rest lies."""
        parts = _parts(cell)
        if not parts:
            return
        if ".." in parts:
            if self._first(self._by_path, _resolved((*within, *parts))):
                yield 0, within
            return
        for file in self._first(self._by_end, parts[-1:])[:_LOOKED_AT]:
            n_shared = _n_shared(file, parts)
            cut, folder = len(parts) - 1 - n_shared, file.folders[: len(file.folders) - n_shared]
            if (cut == 0 or not folder or _is_absolute(cell)) and (
                _is_within(file, within) or (cut, folder) == (0, ())
            ):
                yield cut, folder

    @staticmethod
    def _first(index: dict[str, list[FoundFile]], parts: Parts) -> tuple[FoundFile, ...]:
        """The pictures under the first key that has any: as it is written, then in any capitals."""
        for key in _keys("/".join(parts)):
            if key in index:
                return tuple(dict.fromkeys(index[key]))
        return ()


def _keys(path: str) -> tuple[str, str]:
    """The path, and a key for it in any capitals, which is no path."""
    return path, f"\0{path.casefold()}"


def _n_shared(file: FoundFile, parts: Parts) -> int:
    """How many folders above the picture are those above the name in `parts`."""
    pairs = zip(reversed(file.folders), reversed(parts[:-1]), strict=False)
    n_shared = 0
    for here, there in pairs:
        if here.casefold() != there.casefold():
            break
        n_shared += 1
    return n_shared


def _is_within(file: FoundFile, folder: Parts) -> bool:
    return file.folders[: len(folder)] == folder


def _parts(called: str) -> Parts:
    """The parts of a path, with `/` or `\\` between them."""
    text = unicodedata.normalize("NFC", called.replace("\\", "/"))
    return tuple(part for part in text.split("/") if part not in ("", "."))


def _is_absolute(called: str) -> bool:
    return called.startswith(("/", "\\")) or called[1:2] == ":"


def _resolved(parts: Parts) -> Parts:
    """The path without `..`; () where it leads out of the source."""
    found: list[str] = []
    for part in parts:
        if part != "..":
            found.append(part)
        elif not found:
            return ()
        else:
            found.pop()
    return tuple(found)


def leads_outside(called: str, within: Parts) -> bool:
    """Whether a path leads out of the source, from the folder `within`."""
    return ".." in _parts(called) and not _resolved((*within, *_parts(called)))


def _stem(name: str) -> str:
    return name[: name.rfind(".")] if name.rfind(".") > 0 else name
