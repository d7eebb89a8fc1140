"""The Great Expectations suite that a dataset is checked against. The only importer of great_expectations.

What the kind of item keeps and measures decides which checks of the items are made: `mode`, `width` and `height` of the
original; `mean`, `std`, `min` and `max` in grey levels, 0 to 255; `not_finite`, a count of numbers.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pandas as pd

from kshot.data.items import AnyItemKind, ImageKind
from kshot.data.packed import SPLITS, PackedDataset, manifest_schema
from kshot.printing import counted
from kshot.validation.facts import Facts
from kshot.validation.remedies import (
    Drop,
    Remedy,
    dropped_or_smaller,
    left_in_one_split,
    left_out_or_lowered,
    merged_twins,
    most_frequent_reason,
    moved_or_lowered,
    no_class_remedy,
    no_remedy,
    put_into_a_split,
    restored,
    restored_items,
    tolerated,
)
from kshot.validation.report import CheckResult
from kshot.validation.settings import FactSettings

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation

_ORIGINAL_MODES = {"1", "CMYK", "F", "HSV", "I", "I;16", "I;16B", "I;16L", "I;16N", "L", "LA", "LAB", "La", "P", "PA"}
_ORIGINAL_MODES |= {"RGB", "RGBA", "RGBX", "RGBa", "YCbCr"}  # all that Pillow knows
_NAMED_IN_ERROR = 3


@dataclass(frozen=True, kw_only=True)
class Check:
    """One expectation on one table, and how to name what fails it.

    `found` is set where the table is a single row about the whole set. Otherwise the failing rows are
    counted as `noun`s that are `wrong`, and `describe` names each. `remedy` gives the findings of the failing
    rows, and the command that resolves them.
    """

    name: str
    needed: str
    expectation: "Expectation"
    table: pd.DataFrame
    found: str = ""
    noun: str = "item"
    wrong: str = ""
    describe: Callable[[pd.DataFrame], Iterable[str]] = lambda rows: map(repr, rows["id"])
    remedy: Callable[[pd.DataFrame], Remedy] = no_remedy


def check(dataset: PackedDataset, facts: Facts, limits: FactSettings) -> list[CheckResult]:
    """Every result, in the order of the suite. A check that cannot be made has failed."""
    gx, expectations = _great_expectations()
    context = gx.get_context(mode="ephemeral")
    context.enable_analytics(False)
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("kshot").add_dataframe_asset("facts")
    whole_table = asset.add_batch_definition_whole_dataframe("whole table")
    results = []
    for one in (
        *_item_checks(expectations, dataset, facts, limits),
        *_class_checks(expectations, dataset, facts),
        *_set_checks(expectations, dataset, facts, limits),
    ):
        batch = whole_table.get_batch({"dataframe": _looked_at(one)})
        results.append(_result(one, batch.validate(one.expectation, result_format="COMPLETE")))
    return results


def _great_expectations() -> tuple[ModuleType, ModuleType]:
    """Imported here because it takes 5 s, and quietly because it imports modules that Python deprecates."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"module 'sre_\w+' is deprecated", DeprecationWarning)
        import great_expectations as gx
        import great_expectations.expectations as expectations
    return gx, expectations


def _looked_at(one: Check) -> pd.DataFrame:
    """The columns that the expectation is about: Great Expectations hashes all that it is given, cell by cell."""
    names = {getattr(one.expectation, name, None) for name in ("column", "column_A", "column_B")}
    columns = [name for name in one.table.columns if name in names]
    return one.table[columns] if columns else one.table.iloc[:0]


def _result(one: Check, outcome: Any) -> CheckResult:
    offenders: tuple[str, ...] = ()
    rows = one.table
    if outcome.exception_info.get("raised_exception", True):
        found = "could not be checked"
    elif one.found:
        found = one.found
    else:
        rows = one.table.iloc[outcome.result.get("unexpected_index_list") or []]
        offenders = tuple(dict.fromkeys(one.describe(rows)))
        found = f"{counted(len(offenders), one.noun)} {one.wrong}"
    return CheckResult(
        name=one.name,
        severity="critical" if one.expectation.severity.value == "critical" else "warning",
        passed=bool(outcome.success),
        needed=one.needed,
        found=found,
        offenders=offenders,
        remedy=Remedy() if outcome.success else one.remedy(rows),
    )


def _item_checks(gxe: ModuleType, dataset: PackedDataset, facts: Facts, limits: FactSettings) -> Iterable[Check]:
    """Schema, layout and content of the items."""
    items, item = facts.items, dataset.item
    columns, noun = manifest_schema(item).names, item.kind
    drop = Drop(dataset.name)
    measured = {*item.original, *item.facts(item.example(1)).columns}
    yield Check(
        name="manifest_columns",
        needed=f"columns {', '.join(columns)}",
        expectation=gxe.ExpectTableColumnsToMatchSet(column_set=columns, exact_match=False),
        table=items,
        found=f"{len(set(columns) & set(items.columns))} of these {len(columns)}",
        remedy=restored,
    )
    yield Check(
        name="manifest_values",
        needed="no value missing, but for the group",
        expectation=gxe.ExpectColumnValuesToBeBetween(column="missing", max_value=0),
        table=facts.columns,
        noun="column",
        wrong="with missing values",
        describe=lambda rows: [f"{row.column} misses {row.missing:,}" for row in rows.itertuples()],
        remedy=restored,
    )
    yield Check(
        name="shard_layout",
        needed=f"{item.dtype}, {' x '.join(map(str, item.shape))} each item",
        expectation=gxe.ExpectColumnPairValuesToBeEqual(column_A="found", column_B="needed"),
        table=facts.shards,
        noun="shard",
        wrong="of another layout",
        describe=lambda rows: [f"{row.file} is {row.found}, not {row.needed}" for row in rows.itertuples()],
        remedy=restored,
    )
    yield Check(
        name="unique_ids",
        needed="no id twice",
        expectation=gxe.ExpectColumnValuesToBeBetween(column="uses", max_value=1),
        table=items.assign(uses=1 + items["id"].duplicated(keep=False)),
        noun="id",
        wrong="used more than once",
        remedy=drop.critical("unique_ids"),
    )
    yield Check(
        name="unaltered_items",
        needed="the sha256 that the manifest recorded at ingest",
        expectation=gxe.ExpectColumnValuesToBeInSet(column="sha256_matches", value_set=[True]),
        table=items,
        wrong="altered since ingest",
        remedy=restored_items,
    )
    if {"width", "height", "mode"} <= measured:
        yield from _original_checks(gxe, items, item, drop)
    if {"std", "min", "max"} <= measured:
        yield from _grey_level_checks(gxe, items, limits, drop)
    if "not_finite" in measured:
        yield Check(
            name="finite_numbers",
            needed="no number that is infinite or not a number",
            expectation=gxe.ExpectColumnValuesToBeBetween(column="not_finite", max_value=0),
            table=items,
            wrong="with numbers that are not finite",
            remedy=drop.critical("finite_numbers"),
        )
    for name, column, needed, wrong, severity in (
        ("identical_across_splits", "splits_sharing", f"no {noun} in two splits", "in several splits", "critical"),
        ("identical_across_classes", "classes_sharing", f"no {noun} in two classes", "in several classes", "critical"),
        ("identical_within_class", "copies", f"no {noun} twice in a class", "more than once in its class", "warning"),
    ):
        yield Check(
            name=name,
            needed=needed,
            expectation=gxe.ExpectColumnValuesToBeBetween(column=column, max_value=1, severity=severity),
            table=items,
            noun=noun,
            wrong=wrong,
            describe=_equal_ids,
            remedy=drop.critical(name) if severity == "critical" else drop.all_but_first(name),
        )


def _original_checks(gxe: ModuleType, items: pd.DataFrame, item: AnyItemKind, drop: Drop) -> Iterable[Check]:
    """Of the pictures that the items were made of."""
    size = min(item.shape[:2])
    sides = items[["width", "height"]]
    is_padded = isinstance(item, ImageKind) and item.fit == "pad"
    sized = items.assign(original_px=sides.max(axis=1) if is_padded else sides.min(axis=1))
    yield Check(
        name="original_mode",
        needed="an image mode that Pillow knows",
        expectation=gxe.ExpectColumnValuesToBeInSet(column="mode", value_set=sorted(_ORIGINAL_MODES)),
        table=items,
        wrong="from an unknown mode",
        describe=lambda rows: [f"{row.id!r} was {row.mode!r}" for row in rows.itertuples()],
        remedy=drop.critical("original_mode"),
    )
    yield Check(
        name="original_size",
        needed=f"originals of at least {size} pixels on the longer side"
        if is_padded
        else f"originals of at least {size} x {size} pixels",
        expectation=gxe.ExpectColumnValuesToBeBetween(column="original_px", min_value=size, severity="warning"),
        table=sized,
        wrong="enlarged from a smaller original",
        describe=lambda rows: [f"{row.id!r} was {row.width} x {row.height}" for row in rows.itertuples()],
        remedy=lambda rows: dropped_or_smaller(drop, sized, rows),
    )


def _grey_level_checks(gxe: ModuleType, items: pd.DataFrame, limits: FactSettings, drop: Drop) -> Iterable[Check]:
    """Of the spread of the pixels of each item."""
    yield Check(
        name="not_blank",
        needed=f"pixel values with a standard deviation of {limits.blank_std:g} or more"
        + (f"; up to {limits.max_blank_share:.1%} of the items may be blank" if limits.max_blank_share else ""),
        expectation=gxe.ExpectColumnValuesToBeBetween(
            column="std", min_value=limits.blank_std, mostly=1 - limits.max_blank_share
        ),
        table=items,
        wrong="blank",
        remedy=drop.critical("not_blank"),
    )
    yield Check(
        name="value_range",
        needed=f"{limits.min_contrast} grey levels or more between an item's darkest and brightest pixel",
        expectation=gxe.ExpectColumnValuesToBeBetween(
            column="contrast", min_value=limits.min_contrast, severity="warning"
        ),
        table=items.assign(contrast=(items["max"] - items["min"]).mask(items["blank"])),
        wrong="with little contrast",
        remedy=drop.warned("value_range"),
    )


def _class_checks(gxe: ModuleType, dataset: PackedDataset, facts: Facts) -> Iterable[Check]:
    """Labels and splits, and whether every configured episode can be drawn."""
    yield Check(
        name="known_labels",
        needed=f"every class in one of {', '.join(SPLITS)}",
        expectation=gxe.ExpectColumnValuesToBeInSet(column="split", value_set=list(SPLITS)),
        table=facts.items,
        noun="class",
        wrong="in no split",
        describe=_unknown_classes,
        remedy=lambda rows: put_into_a_split(dataset.name, rows),
    )
    for name, column, needed, wrong, severity, remedy in (
        ("disjoint_splits", "splits", "no class in two splits", "in several splits", "critical", left_in_one_split),
        ("one_group", "groups", "no class in two groups", "in several groups", "warning", no_class_remedy),
        (
            "distinct_names",
            "twins",
            "class names that differ in more than case or composition",
            "alike",
            "warning",
            merged_twins,
        ),
    ):
        yield Check(
            name=name,
            needed=needed,
            expectation=gxe.ExpectColumnValuesToBeBetween(column=column, max_value=1, severity=severity),
            table=facts.classes,
            noun="class",
            wrong=wrong,
            describe=lambda rows: map(repr, rows["class"]),
            remedy=partial(remedy, dataset),
        )
    yield Check(
        name="images_per_class",
        needed=f"k_shot + n_query {dataset.item.kind}s in every class, for every episode shape of its split",
        expectation=gxe.ExpectColumnPairValuesAToBeGreaterThanB(
            column_A="items_found", column_B="items_needed", or_equal=True
        ),
        table=facts.class_shapes,
        noun="class",
        wrong=f"short of {dataset.item.kind}s",
        describe=_short_classes,
        remedy=lambda rows: left_out_or_lowered(dataset.name, facts.class_shapes, rows),
    )
    yield Check(
        name="classes_per_split",
        needed="n_way classes to draw from, for every episode shape of the split",
        expectation=gxe.ExpectColumnPairValuesAToBeGreaterThanB(
            column_A="classes_found", column_B="classes_needed", or_equal=True
        ),
        table=facts.split_shapes,
        noun="episode shape",
        wrong="short of classes",
        describe=lambda rows: [
            f"{row.split} {row.shape} has {row.classes_found} of {row.classes_needed} needed {row.where}"
            for row in rows.itertuples()
        ],
        remedy=lambda rows: moved_or_lowered(dataset, facts, rows),
    )


def _set_checks(gxe: ModuleType, dataset: PackedDataset, facts: Facts, limits: FactSettings) -> Iterable[Check]:
    """What can only be said of the dataset as a whole: one number, with its limit."""

    def at_most(
        name: str,
        limit: float,
        value: float,
        found: str,
        needed: str,
        severity: str = "warning",
        remedy: Callable[[pd.DataFrame], Remedy] = no_remedy,
    ) -> Check:
        expectation = gxe.ExpectColumnValuesToBeBetween(column=name, max_value=limit, severity=severity)
        return Check(
            name=name,
            needed=needed,
            found=found,
            expectation=expectation,
            table=pd.DataFrame({name: [value]}),
            remedy=remedy,
        )

    near, drift, n_quarantined = facts.near_duplicates, facts.drift, len(dataset.info.quarantined)
    if near is not None:
        yield at_most(
            "near_duplicates",
            limits.max_near_duplicates,
            len(near),
            f"{'' if near.complete else 'at least '}{counted(len(near), 'pair')}, {near.across_splits:,} across splits"
            + (f", among {near.n_compared:,} items drawn" if near.n_compared == limits.near_duplicate_items else ""),
            f"{_no_more_than(limits.max_near_duplicates, 'pair')} of different classes that look alike",
            remedy=lambda rows: Drop(dataset.name).one_of_each_pair("near_duplicates", facts.items, near),
        )
    yield at_most(
        "quarantined_files",
        0,
        n_quarantined,
        counted(n_quarantined, "file"),
        "no file refused by the last ingest",
    )
    share = n_quarantined / (n_quarantined + dataset.info.n_items)
    yield at_most(
        "quarantined_share",
        limits.max_quarantined_share,
        share,
        f"{share:.1%}" + most_frequent_reason(dataset),
        f"at most {limits.max_quarantined_share:.1%} of all files refused",
        severity="critical",
        remedy=lambda rows: tolerated(share),
    )
    for name, measure, what, limit, shift in (
        ("drift_mean", "mean", "brightness", limits.drift_mean, drift and drift.mean),
        ("drift_std", "std", "spread", limits.drift_std, drift and drift.std),
    ):
        if measure not in facts.items:
            continue
        yield at_most(
            name,
            limit,
            shift.at_least if shift else 0,
            f"{shift.before:.1f} before, {shift.after:.1f} in the last version" if shift else "one version",
            f"pixel {what} of the last version within {limit:g} grey levels of the earlier ones",
        )
    yield at_most(
        "drift_classes",
        limits.drift_classes,
        drift.class_shift if drift else 0,
        f"{drift.class_shift:.1%} moved" if drift else "one version",
        f"shares of the earlier classes moved by at most {limits.drift_classes:.1%} in the last version",
    )


def in_words(result: CheckResult) -> str:
    """Names come as Python literals, so that an odd class name cannot break the line or steer the terminal."""
    more = len(result.offenders) - _NAMED_IN_ERROR
    named = ", ".join(result.offenders[:_NAMED_IN_ERROR]) + (f", and {more:,} more" if more > 0 else "")
    following = f"; next: {result.remedy.command}" if result.remedy.command else ""
    return f"{result.name}: {result.found}" + (f" ({named})" if named else "") + following


def _no_more_than(limit: int, noun: str) -> str:
    return f"at most {counted(limit, noun)}" if limit else f"no {noun}"


def _unknown_classes(rows: pd.DataFrame) -> list[str]:
    return [f"{name!r} with {counted(len(items), 'item')}" for name, items in rows.groupby("class", sort=False)]


def _equal_ids(rows: pd.DataFrame) -> list[str]:
    return [" = ".join(map(repr, alike)) for _, alike in rows.groupby("content_sha256", sort=False)["id"]]


def _short_classes(rows: pd.DataFrame) -> list[str]:
    """Each class once, with the neediest of its episode shapes."""
    neediest = rows.sort_values("items_needed", ascending=False, kind="stable").drop_duplicates("class").sort_index()
    columns = zip(neediest["class"], neediest["items_found"], neediest["items_needed"], strict=True)
    return [f"{name!r} has {found} of {needed}" for name, found, needed in columns]
