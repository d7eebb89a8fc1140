"""What the levels of a folder tree mean: split, domain, group or class.

Without a word from the user: folders that are all named as splits are splits, at the level where they are found
(split/class, group/split/class, class/split). A folder such as `images` that alone holds the pictures of its parent
means nothing, nor does one that alone holds the splits. What is left is class, or group/class, where the class is then
called "group/class". A level of which only some folders are named as splits is refused: it may mean either. Domains,
such as styles or cameras, are there where the user says so alone.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from kshot.data.folders import LAYOUTS, FoundFile, Parts, check_class_folders, without_picture_folders
from kshot.errors import DataError
from kshot.ingest.splits import split_of, splits_of
from kshot.printing import listed, printable

Role = Literal["split", "domain", "group", "class"]
Layout = tuple[Role, ...]  # of the levels of folders, from the top

_WAYS = {1: "class", 2: "group/class", 3: "group/split/class"}


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A picture of a class, and of the split that a folder says, or ""."""

    file: FoundFile
    class_name: str
    group: str
    split: str


@dataclass(frozen=True, kw_only=True)
class Placement:
    """`unlabelled` lie in no class folder. `words` names the layout: "split/class/picture"."""

    placed: tuple[Placed, ...]
    unlabelled: tuple[FoundFile, ...]
    words: str


def read_layout(text: str) -> Layout:
    """The layout that a user writes as split/class. Raises DataError."""
    roles = tuple(text.strip("/").split("/"))
    known = set(get_args(Role))
    if not set(roles) <= known or len(set(roles)) < len(roles) or "class" not in roles:
        raise DataError(
            f"found layout {printable(text)!r}; needed split, domain, group and class with / between them, each at "
            "most once and class always, such as split/class"
        )
    return cast(Layout, roles)


def place(files: Sequence[FoundFile], layout: Layout = ()) -> Placement:
    """Give every file its class, group and split, by `layout` or by what the names say. Raises DataError."""
    folders = tuple(dict.fromkeys(file.folders for file in files))
    meanings = _by_layout(folders, layout) if layout else _found(folders)
    placed = tuple(
        Placed(file=file, class_name=meaning.class_name, group=meaning.group, split=meaning.split)
        for file in files
        if (meaning := meanings[file.folders]) is not None
    )
    unlabelled = tuple(file for file in files if meanings[file.folders] is None)
    return Placement(placed=placed, unlabelled=unlabelled, words=_words(layout, meanings.values()))


@dataclass(frozen=True, kw_only=True)
class _Meaning:
    class_name: str
    group: str = ""
    split: str = ""
    roles: Layout


def _by_layout(folders: Sequence[Parts], layout: Layout) -> dict[Parts, _Meaning | None]:
    for folder in folders:
        if folder and len(folder) != len(layout):
            raise DataError(
                f"{printable('/'.join(folder))!r} is {len(folder)} folders deep; "
                f"--layout {'/'.join(layout)} needs {len(layout)}"
            )
    at = layout.index("split") if "split" in layout else None
    splits = {} if at is None else splits_of(dict.fromkeys(folder[at] for folder in folders if folder))

    def meaning(folder: Parts) -> _Meaning:
        said = dict(zip(layout, folder, strict=True))
        if at is not None and folder[at] not in splits:
            raise DataError(f"{printable(folder[at])!r} is no name of a split; needed one such as train, val or test")
        name = "/".join(part for part, role in zip(folder, layout, strict=True) if role not in ("split", "domain"))
        split = "" if at is None else splits[folder[at]]
        return _Meaning(class_name=name, group=said.get("group", ""), split=split, roles=layout)

    return {folder: meaning(folder) if folder else None for folder in folders}


def _found(folders: Iterable[Parts]) -> dict[Parts, _Meaning | None]:
    meant = _without_doubles(without_picture_folders(folders))
    level, splits = _split_level(set(meant.values()))
    rest: dict[Parts, tuple[Parts, str]] = {}
    wrapped = level is not None and level > 0 and len({parts[:level] for parts in meant.values()}) == 1
    for folder, parts in meant.items():
        if level is None or len(parts) <= level:
            rest[folder] = (parts, "")
        else:
            below = parts[level + 1 :]
            above = () if wrapped and below else parts[:level]
            rest[folder] = (above + below, splits[parts[level]])
    check_class_folders(parts for parts, _ in rest.values() if parts)
    return {
        folder: _Meaning(
            class_name="/".join(parts),
            group=parts[0] if len(parts) == 2 else "",
            split=split,
            roles=_roles(level if not wrapped else 0, len(parts), bool(split)),
        )
        if parts
        else None
        for folder, (parts, split) in rest.items()
    }


def _roles(split_level: int | None, n_others: int, has_split: bool) -> Layout:
    roles: list[Role] = ["group", "class"][2 - n_others :]  # type: ignore[assignment]
    if has_split and split_level is not None:
        roles.insert(split_level, "split")
    return tuple(roles)


def _without_doubles(folders: Mapping[Parts, Parts]) -> dict[Parts, Parts]:
    """The same, where a folder of a split in which there is but another of the same split counts once: train/train."""
    below: dict[Parts, set[Parts]] = {}
    for parts in folders.values():
        for depth in range(len(parts)):
            below.setdefault(parts[:depth], set()).add(parts[: depth + 1])

    def single(parts: Parts) -> Parts:
        for level in range(1, len(parts)):
            split = split_of(parts[level])
            if split and split == split_of(parts[level - 1]) and len(below[parts[:level]]) == 1:
                return (*parts[:level], *parts[level + 1 :])
        return parts

    return {folder: single(parts) for folder, parts in folders.items()}


def _split_level(folders: Collection[Parts]) -> tuple[int | None, dict[str, str]]:
    """The first level whose folders are all named as splits, and the split of each name.

    Raise DataError where the folders of a level may be splits or not.
    """
    depth = max(map(len, folders), default=0)
    for level in range(depth):
        names = dict.fromkeys(parts[level] for parts in folders if len(parts) > level)
        splits = splits_of(names)
        if len(splits) == len(names):
            return level, splits
        inner = any(len(parts) > level + 1 and parts[level] in splits for parts in folders)
        if len(set(splits.values())) > 1 or (splits and inner):
            others = [name for name in names if name not in splits]
            one = len(splits) == 1
            raise DataError(
                f"the folder{'' if one else 's'} {listed(sorted(splits))} {'is' if one else 'are'} named as "
                f"{'a split' if one else 'splits'}, and {listed(sorted(others))} beside {'it' if one else 'them'} "
                f"{'is' if len(others) == 1 else 'are'} not; next: name all of them train, val or test, or say that "
                f"none of them is a split with --layout {_WAYS[min(3, depth)]}"
            )
    return None, {}


def _words(layout: Layout, meanings: Iterable[_Meaning | None]) -> str:
    """Every layout that occurs, as a user would write it; the most usual order first."""
    roles = dict.fromkeys(meaning.roles for meaning in meanings if meaning is not None)
    found = ["/".join((*levels, "picture")) for levels in ([layout] if layout else sorted(roles, key=len))]
    return " and ".join(found) or LAYOUTS
