"""Whether a challenger takes the champion's place: a pure function of paired results and thresholds.

Two models are compared on the very same frozen episodes, so the interval is that of the difference in
each episode, which is several times narrower than the difference of two intervals.

Shapes: E episodes of a setting.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from kshot.evaluation.intervals import Interval, paired_difference
from kshot.evaluation.scorecard import Lead, Scorecard
from kshot.promotion.settings import PromotionSettings

Verdict = Literal["first", "better", "no difference", "worse", "not comparable"]


@dataclass(frozen=True, kw_only=True)
class GateCheck:
    """One condition of promotion; `found` and `needed` are texts for the reader."""

    name: str
    passed: bool
    found: str
    needed: str


@dataclass(frozen=True, kw_only=True)
class PromotionDecision:
    """`promote` is whether all checks passed, whatever the mode; `difference` is challenger minus champion."""

    verdict: Verdict
    promote: bool
    difference: Interval | None
    checks: tuple[GateCheck, ...]

    @property
    def reason(self) -> str:
        """One line."""
        words: str = self.verdict
        if self.difference is not None:
            words += f": {_points(self.difference.mean)} ± {100 * self.difference.half_width:.2f} points"
        failed = [check for check in self.checks if not check.passed]
        refusals = "; ".join(f"{check.name} {check.found}, need {check.needed}" for check in failed)
        return f"{words}; {refusals}" if failed else words


def decide(
    challenger: Scorecard,
    champion: Scorecard | None,
    thresholds: PromotionSettings,
    galleries: Mapping[str, tuple[float, float]] | None = None,
) -> PromotionDecision:
    """Compare on the same episodes and check every threshold. Without a champion, only the absolute ones count.

    `galleries` are accuracies of champion and challenger by leaving one example out, on what users keep.
    """
    verdict: Verdict
    if champion is None:
        verdict, difference = "first", None
    elif champion.episodes != challenger.episodes or champion.accuracy.keys() != challenger.accuracy.keys():
        verdict, difference = "not comparable", None
    else:
        difference = paired_difference(challenger.accuracy, champion.accuracy)
        verdict = verdict_of(difference)
    checks = (
        *_against_champion(challenger, champion, difference, thresholds),
        *_in_use(galleries or {}, thresholds),
        *_absolute(challenger, thresholds),
    )
    return PromotionDecision(
        verdict=verdict, promote=all(check.passed for check in checks), difference=difference, checks=checks
    )


def verdict_of(difference: Interval) -> Verdict:
    """Whether the interval of a paired difference lies above 0, below it or on both sides."""
    if difference.mean - difference.half_width > 0:
        return "better"
    if difference.mean + difference.half_width < 0:
        return "worse"
    return "no difference"


def _against_champion(
    challenger: Scorecard, champion: Scorecard | None, difference: Interval | None, thresholds: PromotionSettings
) -> Iterator[GateCheck]:
    if champion is None:
        return
    yield GateCheck(
        name="same episodes",
        passed=difference is not None,
        found=challenger.episodes[:12],
        needed=f"those of the champion, {champion.episodes[:12]}",
    )
    if difference is None:
        return
    yield GateCheck(
        name="other weights",
        passed=(challenger.weights_sha256, challenger.algorithm) != (champion.weights_sha256, champion.algorithm),
        found=challenger.weights_sha256[:12],
        needed="others than the champion's",
    )
    lower = difference.mean - difference.half_width
    yield GateCheck(
        name="gain",
        passed=lower > thresholds.required_gain,
        found=f"at least {_points(lower)} points",
        needed=f"more than {_points(thresholds.required_gain)}",
    )
    if thresholds.max_group_drop is not None:
        yield _group_drop(challenger.group_accuracy, champion.group_accuracy, thresholds.max_group_drop)


def _in_use(galleries: Mapping[str, tuple[float, float]], thresholds: PromotionSettings) -> Iterator[GateCheck]:
    allowed = thresholds.max_gallery_drop
    if allowed is None or not galleries:
        return
    drops = {name: before - after for name, (before, after) in galleries.items()}
    worst = max(drops, key=lambda name: drops[name])
    drop = max(0.0, drops[worst])
    yield GateCheck(
        name="drop in a gallery",
        passed=drop <= allowed,
        found=f"{100 * drop:.2f} points in {worst}" if drop else f"none in {len(galleries)}",
        needed=f"at most {100 * allowed:.2f}",
    )


def _group_drop(challenger: Mapping[str, float], champion: Mapping[str, float], allowed: float) -> GateCheck:
    drops = {group: before - challenger[group] for group, before in champion.items() if group in challenger}
    worst = max(drops, key=lambda group: drops[group], default=None)
    drop = 0.0 if worst is None else max(0.0, drops[worst])
    return GateCheck(
        name="drop in a group",
        passed=drop <= allowed,
        found=f"{100 * drop:.2f} points in {worst}" if drop else "none",
        needed=f"at most {100 * allowed:.2f}",
    )


def _absolute(challenger: Scorecard, thresholds: PromotionSettings) -> Iterator[GateCheck]:
    means = {setting: float(accuracy.mean()) for setting, accuracy in challenger.accuracy.items()}
    for setting, floor in thresholds.floors.items():
        found = means.get(setting)
        yield GateCheck(
            name=f"floor of {setting}",
            passed=found is not None and found >= floor,
            found="no such setting" if found is None else f"{found:.2%}",
            needed=f"at least {floor:.2%}",
        )
    if thresholds.beat_baselines:
        yield from _baselines(challenger.baselines, means)
    if thresholds.beat_pretrained:
        yield _pretrained(challenger.pretrained)
    limits = (
        ("calibration error", challenger.calibration_error, thresholds.max_calibration_error, "{:.4f}"),
        ("adapting", challenger.adapt_ms, thresholds.max_adapt_ms, "{:.2f} ms"),
        ("classifying a query", challenger.classify_ms, thresholds.max_classify_ms, "{:.3f} ms"),
    )
    for name, value, limit, words in limits:
        if limit is not None:
            yield GateCheck(
                name=name,
                passed=value is not None and value <= limit,
                found="not measured" if value is None else words.format(value),
                needed=f"at most {words.format(limit)}",
            )


def _baselines(baselines: Mapping[str, Mapping[str, float]], means: Mapping[str, float]) -> Iterator[GateCheck]:
    for name, accuracies in baselines.items():
        unbeaten = [setting for setting, accuracy in accuracies.items() if means[setting] <= accuracy]
        yield GateCheck(
            name=f"baseline {name}",
            passed=not unbeaten,
            found=f"not beaten in {', '.join(unbeaten)}" if unbeaten else "beaten in every setting",
            needed="beaten in every setting",
        )


def _pretrained(lead: Lead | None) -> GateCheck:
    name, needed = "best pretrained head", "a lead over it of more than +0.00 points"
    if lead is None:
        return GateCheck(name=name, passed=False, found="none was scored", needed=needed)
    mean, half_width = lead.difference.mean, lead.difference.half_width
    if lead.is_head:
        found, needed = f"at most {_points(mean + half_width)} points over {lead.over}", "not to be behind it"
    else:
        found = f"at least {_points(mean - half_width)} points over {lead.over}"
    return GateCheck(name=name, passed=not lead.is_behind, found=found, needed=needed)


def _points(fraction: float) -> str:
    """A difference of accuracies in percentage points, with its sign."""
    return f"{100 * fraction:+.2f}"
