"""What an ingest has understood of a source, in lines for the person who started it, before a picture is decoded."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from kshot.data.names import in_counts
from kshot.data.packed import SPLITS, Splits
from kshot.errors import DataError
from kshot.ingest.source import Source, SourceFile
from kshot.ingest.sources import check_class_names, nothing_usable
from kshot.ingest.splits import SplitRequest, assign_splits, assign_without
from kshot.printing import counted, listed, printable

_REASONS_SHOWN = 3


def understanding(
    source: Source,
    request: SplitRequest,
    *,
    groups_before: Mapping[str, str],
    splits_before: Splits | None,
    curated: Mapping[str, str] | None = None,
    min_images: int = 0,
) -> Iterator[str]:
    """Lines on layout, classes, groups, splits, three examples, and what is left out and why, in counts.

    `groups_before` and `splits_before` are of the dataset that the source is added to, as its ingests left them;
    `curated` is the split of each class as edits leave it. Raise DataError for what would
    make the dataset ambiguous, as packing does.
    """
    if not source.files:
        raise DataError(nothing_usable(source, source.refused))
    groups = {**groups_before, **{file.class_name: file.group for file in source.files}}
    curated = curated or {}
    check_class_names([*groups, *curated], {file.class_name: file.id for file in reversed(source.files)})
    of_source = {name: split for name, split in source.given_splits.items() if name in groups}
    given = {name: split for name, split in {**of_source, **request.given}.items() if curated.get(name) != split}
    sizes = Counter(file.class_name for file in source.files)
    small = [name for name, size in sizes.items() if size < min_images] if splits_before is None else []
    assigned = (
        assign_without(small, groups, given=given, plan=request.seeded)
        if small
        else assign_splits(
            groups, given=given, plan=request.seeded, before=splits_before, curated=curated, draw=request.draw
        )
    )
    split_of_class = {**assigned.by_class(), **curated}

    yield f"source    {source.name}: {counted(len(source.files), 'picture')}; {source.words}"
    yield f"classes   {len(sizes):,} of {_range(list(sizes.values()))} pictures each: {listed(list(sizes))}"
    named = list(dict.fromkeys(file.group for file in source.files if file.group))
    if named:
        yield f"groups    {len(named):,}: {listed(named)}"
    if source.domain_level is not None:
        domains = sorted({file.id.split("/")[source.domain_level] for file in source.files})
        yield f"domains   {len(domains):,}: {listed(domains)}"
    yield f"splits    {_how(source, request, split_of_class, splits_before)}: {_counts(sizes, split_of_class)}"
    for file in _examples(source, split_of_class):
        yield f"example   {printable(file.id)} is {printable(file.class_name)!r} in {split_of_class[file.class_name]}"
    if source.left_out:
        yield f"left out  {in_counts(row.reason for row in source.left_out)}"
    if source.refused:
        yield f"refused   {counted(len(source.refused), 'file')}: {'; '.join(_reasons(source))}"
    if small:
        words = f"{counted(len(small), 'class')} of fewer than {min_images} pictures"
        yield f"note      {words} will be left out: {listed(small)}"
    for remark in source.remarks:
        yield f"note      {remark}"
    empty = [split for split in SPLITS if not assigned.of(split)]
    if empty:
        yield f"note      no class is in {' or in '.join(empty)}; a run needs some: add them, or --split-by class"


def _how(source: Source, request: SplitRequest, assigned: Mapping[str, str], before: Splits | None) -> str:
    if before is not None:
        drawn = f", new ones are drawn by {request.seeded.by}, seed {request.seeded.seed}" if request.draw else ""
        return f"known classes keep theirs{drawn}"
    if not (request.given or source.given_splits):
        return f"drawn by {request.seeded.by}, seed {request.seeded.seed}"
    given = {**source.given_splits, **request.given}
    held = sum(split == "meta_train" and assigned.get(name) == "meta_val" for name, split in given.items())
    says = "says" if source.split_words.startswith("list") else "say"
    who = "--splits says" if request.given else f"the {source.split_words} {says}"
    more = f", but for {counted(held, 'class')} of meta_train that seed {request.seeded.seed} holds back for meta_val"
    return f"as {who}{more if held else ''}"


def _counts(sizes: Mapping[str, int], split_of_class: Mapping[str, str]) -> str:
    n_classes = Counter(split_of_class[name] for name in sizes)
    n_files = Counter[str]()
    for name, size in sizes.items():
        n_files[split_of_class[name]] += size
    return ", ".join(
        f"{counted(n_classes[split], 'class')} ({counted(n_files[split], 'picture')}) in {split}" for split in SPLITS
    )


def _examples(source: Source, split_of_class: Mapping[str, str]) -> Iterator[SourceFile]:
    """The first picture of each split, and others to make up three."""
    first = {split_of_class[file.class_name]: file for file in reversed(source.files)}
    shown = [first[split] for split in SPLITS if split in first]
    others = (file for file in source.files if file not in shown)
    yield from [*shown, *(file for file, _ in zip(others, range(3 - len(shown)), strict=False))]


def _reasons(source: Source) -> Iterator[str]:
    first = {row.reason: row.source for row in reversed(source.refused)}
    for reason, name in list(first.items())[:_REASONS_SHOWN]:
        yield f"{name}: {reason}"
    if len(first) > _REASONS_SHOWN:
        yield f"and {len(first) - _REASONS_SHOWN:,} other reasons"


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers, default=0), max(numbers, default=0)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
