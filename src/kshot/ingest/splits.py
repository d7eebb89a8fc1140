"""Which classes are for meta-training, validation and test: given by the user, or drawn from a seed."""

import csv
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass as settings

from kshot.data.packed import SPLITS, Splits
from kshot.errors import DataError
from kshot.printing import counted, listed, printable
from kshot.seeding import generator
from kshot.settings import STRICT

_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "meta_train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "meta_val"),
    **dict.fromkeys(("test", "testing", "tst", "eval", "evaluation"), "meta_test"),
}
_FEW_SHOT = {  # words of the field, which beside other splits alone mean one
    **dict.fromkeys(("base", "background", "seen"), "meta_train"),
    **dict.fromkeys(("novel", "unseen"), "meta_test"),
}
_FLAGS = {"meta_train": "meta_test", "meta_test": "meta_train", "meta_val": "meta_train"}  # what "no" means
_YES, _NO = frozenset({"1", "1.0", "true", "yes", "y", "t"}), frozenset({"0", "0.0", "false", "no", "n", "f"})
_BESIDE = (  # words around a split's
    r"(?:meta|data|dataset|images?|imgs?|pictures|photos|set|split|labels|annotations|public|private)"
)


def _spelling(words: Iterable[str]) -> re.Pattern[str]:
    return re.compile(
        rf"(?:\d+[-_. ]+)?(?:{_BESIDE}[-_. ]?)*?({'|'.join(words)})(?:[-_. ]?(?:{_BESIDE}|\d\d\d+)|[-_. ]\d+)*",
        re.IGNORECASE,
    )


_SPELLING, _FEW_SHOT_SPELLING = _spelling(_WORDS), _spelling(_FEW_SHOT)
_FLAG = re.compile(
    rf"(?:is[-_. ]?)?(?:in[-_. ]?)?({'|'.join(_WORDS)})(?:[-_. ]?(?:set|split|data|image|img))?", re.IGNORECASE
)
_WORD = re.compile(rf"(?<![a-z])({'|'.join(_WORDS)})(?![a-z])", re.IGNORECASE)

Fraction = Annotated[float, Field(gt=0, lt=1)]


@settings(frozen=True, kw_only=True, config=STRICT)
class SeededSplits:
    """Every class, or every group with all its classes, drawn into one split; fractions count classes."""

    by: Literal["class", "group"] = "class"
    seed: int = 1
    meta_train: Fraction = 0.64
    meta_val: Fraction = 0.16
    meta_test: Fraction = 0.20

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.meta_train + self.meta_val + self.meta_test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the fractions sum to {total:g}; needed 1")
        return self


def splits_of(names: Collection[str]) -> dict[str, str]:
    """The split of those of `names` that have one, of folders beside one another or of the values of one column.

    Usual spellings; else names that differ in that word alone, such as seg_train and seg_test. Words of the field such
    as base and novel count where all names are splits with them, and one is of meta_train and another is not.
    """
    usual = {name: split for name in names if (split := split_of(name))}
    if len(usual) < len(names):
        fields = {
            name: _FEW_SHOT[match[1].lower()]
            for name in names
            if name not in usual and (match := _FEW_SHOT_SPELLING.fullmatch(name.strip()))
        }
        together = usual | fields
        if len(together) == len(names) and "meta_train" in together.values() and len(set(together.values())) > 1:
            return together
    return usual or _split_among(names)


def splits_of_flags(header: str, values: Collection[str]) -> dict[str, str]:
    """The split of each value of a column of yes and no, such as is_train; {} where it is none."""
    match = _FLAG.fullmatch(header.strip())
    words = {value: value.strip().lower() for value in values}
    if match is None or not words or not set(words.values()) <= _YES | _NO:
        return {}
    yes = _WORDS[match[1].lower()]
    return {value: yes if word in _YES else _FLAGS[yes] for value, word in words.items()}


def _split_among(names: Collection[str]) -> dict[str, str]:
    words = {name: _WORD.findall(name) for name in names}
    rests = {_WORD.sub("", name).casefold() for name in names}
    splits = {name: _WORDS[found[0].lower()] for name, found in words.items() if len(found) == 1}
    alike = len(splits) == len(words) and len(rests) == 1 and len(set(splits.values())) > 1
    return splits if alike else {}


@dataclass(frozen=True, kw_only=True)
class SplitRequest:
    """Splits `given` by class, which take precedence over those of a source, and how to draw them when none are.

    `draw` says to draw those of new classes of a known dataset as well.
    """

    given: Mapping[str, str] = field(default_factory=dict)
    draw: bool = False
    seeded: SeededSplits = field(default_factory=SeededSplits)


def split_of(name: str) -> str | None:
    """The split that `name` is a usual spelling of: train, Training, val_images, test-set, meta_val; else None."""
    match = _SPELLING.fullmatch(name.strip())
    return _WORDS[match[1].lower()] if match else None


def read_splits(path: Path) -> dict[str, str]:
    """A CSV of class,split -> split of each class, in any usual spelling: train, valid, meta_test, ..."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a CSV of class,split: {error}") from error
    given: dict[str, str] = {}
    for line, row in enumerate(rows, start=1):
        if not row or (line == 1 and [cell.strip() for cell in row] == ["class", "split"]):
            continue
        if len(row) != 2:
            raise DataError(f"{path} line {line}: found {len(row)} columns; needed class,split")
        add_given(given, row[0].strip(), row[1], where=f"{path} line {line}")
    return given


def add_given(given: dict[str, str], class_name: str, split: str, *, where: str) -> None:
    """Note that the user puts `class_name` into `split`; DataError when that is no split, or another than before."""
    found = split_of(split)
    if found is None:
        raise DataError(
            f"{where}: found split {printable(split.strip())!r}; needed one of {', '.join(SPLITS)}, or train, val, "
            "test; next: write one there, or add --split-by class, which draws the splits"
        )
    class_name = unicodedata.normalize("NFC", class_name)
    known = given.setdefault(class_name, found)
    if known != found:
        raise DataError(
            f"{where}: class {printable(class_name)!r} is in {known} and in {found}; needed one split per class, "
            "because a test is on classes that training never saw; next: add --split-by class, which pools the "
            "pictures of each class and draws the splits anew"
        )


def assign_splits(
    class_groups: Mapping[str, str],
    *,
    given: Mapping[str, str],
    plan: SeededSplits,
    before: Splits | None = None,
    curated: Mapping[str, str] | None = None,
    draw: bool = False,
) -> Splits:
    """Put each class of `class_groups` (class -> group) into exactly one split.

    A class of the dataset as it was `before` keeps its split, which may be `curated` since. A new class goes where it
    is `given`. If nothing is given, a first ingest draws it by `plan`, and so does an append with `draw`; else an
    append puts it with its group where all known classes of that group are in one split, and into meta_train otherwise.
    Where a first ingest is given meta_train and meta_test alone, a fifth of meta_train is held back for meta_val.
    Raise DataError when `given` moves a class, names an unknown one, or covers only some classes of a first ingest.
    """
    _check_known(given, class_groups)
    kept = before.by_class() if before else {}
    moved = [name for name, split in given.items() if kept.get(name, split) != split]
    if moved:
        raise DataError(
            f"{_classes(moved)} would leave {kept[moved[0]]} for {given[moved[0]]}; a class keeps its split, "
            "because models were trained on it; to move it all the same, use the operation move-split of kshot curate"
        )
    new = {name: group for name, group in class_groups.items() if name not in kept}
    if before is not None and draw and new:
        assigned = _drawn(new, plan)
    elif before is not None:
        now = {name: (curated or {}).get(name, split) for name, split in kept.items()}
        with_group = _split_of_whole_groups(class_groups, now)
        assigned = {name: given.get(name, with_group.get(group, "meta_train")) for name, group in new.items()}
    elif given:
        assigned = _held_back(_all_given(new, given), plan)
    else:
        assigned = _drawn(new, plan)
    return _collected({**kept, **assigned})


def assign_without(
    small: Collection[str], class_groups: Mapping[str, str], *, given: Mapping[str, str], plan: SeededSplits
) -> Splits:
    """The splits of a first ingest that will leave out the classes `small`: nothing is drawn over them.

    They stand in meta_train, in case they grow. Raise DataError as `assign_splits`, and where a split is left empty.
    """
    large = {name: group for name, group in class_groups.items() if name not in small}
    splits = assign_splits(large, given={name: of for name, of in given.items() if name not in small}, plan=plan)
    for split in SPLITS:
        if split in given.values() and not splits.of(split):
            raise DataError(
                f"every class that is given for {split} has fewer pictures than --min-images needs; "
                "next: a smaller --min-images, or other splits"
            )
    return _collected({**splits.by_class(), **dict.fromkeys(small, "meta_train")})


def _split_of_whole_groups(class_groups: Mapping[str, str], kept: Mapping[str, str]) -> dict[str, str]:
    """The split of every named group whose known classes share one."""
    found: dict[str, set[str]] = {}
    for name, split in kept.items():
        found.setdefault(class_groups[name], set()).add(split)
    return {group: next(iter(splits)) for group, splits in found.items() if group and len(splits) == 1}


def _check_known(given: Mapping[str, str], class_groups: Mapping[str, str]) -> None:
    unknown = [name for name in given if name not in class_groups]
    if unknown:
        near = get_close_matches(unknown[0], class_groups, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"a split is given for {_classes(unknown)}, but the dataset has no such class{hint}")


def _all_given(classes: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    without = [name for name in classes if name not in given]
    if without:
        raise DataError(
            f"splits are given, but none for {_classes(without)}; needed one for every class; "
            "next: add them, or --split-by class, which draws the splits anew"
        )
    return {name: given[name] for name in classes}


def _held_back(assigned: dict[str, str], plan: SeededSplits) -> dict[str, str]:
    """`assigned`; with train and test but nothing to select models on, a part of meta_train becomes meta_val."""
    trained = sorted(name for name, split in assigned.items() if split == "meta_train")
    if set(assigned.values()) != {"meta_train", "meta_test"} or len(trained) < 2:
        return assigned
    n_held = max(1, round(len(trained) * plan.meta_val / (plan.meta_train + plan.meta_val)))
    drawn = generator(plan.seed, "splits", "held back").permutation(len(trained))[:n_held]
    return assigned | {trained[number]: "meta_val" for number in drawn}


def _drawn(class_groups: Mapping[str, str], plan: SeededSplits) -> dict[str, str]:
    units: dict[str, list[str]] = {}
    for name in sorted(class_groups):
        units.setdefault(class_groups[name] if plan.by == "group" else name, []).append(name)
    if len(units) < len(SPLITS):
        one, many = ("group", "groups") if plan.by == "group" else ("class", "classes")
        raise DataError(
            f"found {len(units)} {one if len(units) == 1 else many}; "
            f"needed at least {len(SPLITS)}, one for each split; next: add some, or "
            "say with --splits FILE, a CSV of class,split, in which split they are"
        )
    names = sorted(units)
    order = [names[index] for index in generator(plan.seed, "splits").permutation(len(names))]
    sizes = np.cumsum([len(units[unit]) for unit in order])
    first, second = _boundaries(sizes, plan)
    return {
        name: SPLITS[int(number >= first) + int(number >= second)]
        for number, unit in enumerate(order)
        for name in units[unit]
    }


def _boundaries(sizes: np.ndarray[tuple[int], np.dtype[np.int64]], plan: SeededSplits) -> tuple[int, int]:
    """Where meta_val and meta_test begin among units of cumulated `sizes`; no split is left empty."""
    total, n_units = int(sizes[-1]), len(sizes)
    first = int(np.abs(sizes - plan.meta_train * total).argmin()) + 1
    first = min(max(first, 1), n_units - 2)
    second = int(np.abs(sizes - (plan.meta_train + plan.meta_val) * total).argmin()) + 1
    return first, min(max(second, first + 1), n_units - 1)


def _collected(split_of_class: Mapping[str, str]) -> Splits:
    names = {split: tuple(sorted(name for name, of in split_of_class.items() if of == split)) for split in SPLITS}
    return Splits(meta_train=names["meta_train"], meta_val=names["meta_val"], meta_test=names["meta_test"])


def _classes(names: Sequence[str]) -> str:
    return f"class {listed(names)}" if len(names) == 1 else f"{counted(len(names), 'class')} ({listed(names)})"
