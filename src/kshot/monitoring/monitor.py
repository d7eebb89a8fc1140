"""The last answers of a gallery against a reference: what `kshot monitor` finds out.

The reference is the first answers that the version gave about the same gallery. Until there are enough of these it is
the sample of meta_val that was kept with the version: the classes of a gallery are others than those, so features
differ without anything having changed, and only the answers are compared.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from scipy.stats import binomtest, fisher_exact

from kshot.errors import DataError
from kshot.monitoring.answers import Answers, read_answers, sample_of
from kshot.monitoring.drift import Drift, DriftTest, Sample, find_drift

ReferenceKind = Literal["first", "version"]
_LEVEL = 0.05
_LEAST = 30  # answers, below which nothing is said


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What was found in the last `n_window` answers of a gallery.

    `unknown` are fractions in the reference and now; of the first is None where the reference has no such answers.
    `accuracy` is over the answers that somebody corrected or confirmed, with its 95% Wilson interval.
    """

    gallery: str
    model: str
    reference: ReferenceKind
    n_reference: int
    n_window: int
    since: str
    drift: Drift
    unknown: tuple[float | None, float]
    accuracy: float | None
    interval: tuple[float, float] | None
    n_corrected: int

    @property
    def verdict(self) -> str:
        if not self.drift.found:
            return f"nothing has changed that {self.n_window} answers would show"
        names = [test.name for test in self.drift.tests if test.alarm]
        return f"drift: {', '.join(names)} differ from the {REFERENCE_WORDS[self.reference]}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": self.verdict, "drifted": self.drift.found}


REFERENCE_WORDS = {"first": "first answers of this version", "version": "answers on meta_val"}


def watch(
    folder: Path, gallery: str, *, n_window: int, n_reference: int, kept: Callable[[str], pd.DataFrame | None]
) -> tuple[Watched, Sample, Sample]:
    """Compare the last `n_window` answers in the log under `folder`; `kept` gives the sample of a model, if any.

    What was found, with the reference and the window. Raises DataError where there are too few answers to compare.
    """
    answers = read_answers(folder, gallery)
    if len(answers) >= n_reference + n_window:
        before = answers.between(0, n_reference)
        now = answers.between(len(answers) - n_window, len(answers))
        drift = find_drift(before.sample, now.sample, more=[_share_of_unknown(before, now)], level=_LEVEL)
        return _watched(answers, now, "first", n_reference, drift, before.unknown), before.sample, now.sample
    rows, now = kept(answers.model), answers.between(max(0, len(answers) - n_window), len(answers))
    if rows is None or len(now) < _LEAST:
        raise DataError(
            f"found {len(answers)} answers of {answers.model} about {gallery!r}; need {n_reference + n_window}, or "
            f"{_LEAST} and a version that keeps a reference; next: kshot monitor --window {_LEAST} --reference {_LEAST}"
        )
    reference = sample_of(rows)
    drift = find_drift(reference, now.sample, level=_LEVEL)
    only = tuple(test for test in drift.tests if test.name != "features")
    return _watched(answers, now, "version", len(rows), replace(drift, tests=only), None), reference, now.sample


def _watched(
    answers: Answers, now: Answers, kind: ReferenceKind, n_reference: int, drift: Drift, unknown_before: float | None
) -> Watched:
    corrected = now.corrected
    n_right = int((corrected["right"] == corrected["class_name"]).sum())
    accuracy = interval = None
    if len(corrected):
        found = binomtest(n_right, len(corrected)).proportion_ci(0.95, "wilson")
        accuracy, interval = n_right / len(corrected), (float(found.low), float(found.high))
    return Watched(
        gallery=answers.gallery,
        model=answers.model,
        reference=kind,
        n_reference=n_reference,
        n_window=len(now),
        since=now.rows["time"].iloc[0].isoformat(timespec="seconds"),
        drift=drift,
        unknown=(unknown_before, now.unknown),
        accuracy=accuracy,
        interval=interval,
        n_corrected=len(corrected),
    )


def _share_of_unknown(before: Answers, now: Answers) -> DriftTest:
    """Fisher's exact test of how many items are of no class."""
    counts = [(round(one.unknown * len(one)), round((1 - one.unknown) * len(one))) for one in (before, now)]
    return DriftTest(
        name="share of unknown",
        statistic=now.unknown - before.unknown,
        p_value=float(fisher_exact(counts).pvalue),
    )
