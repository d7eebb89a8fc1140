"""The gate: a pure function, held against what a statistician would ask of it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kshot.evaluation.intervals import Interval, paired_difference
from kshot.evaluation.scorecard import Lead, Scorecard
from kshot.promotion.rule import GateCheck, decide
from kshot.promotion.settings import PromotionSettings

N_EPISODES, N_QUERIES = 1_000, 75
SHARED_SD = 0.05  # of an episode's difficulty, which both models meet


def scorecard(accuracy: dict[str, NDArray[np.float64]], **fields: Any) -> Scorecard:
    fields = {"weights_sha256": "a" * 64, "episodes": "e" * 64, "group_accuracy": {}, "baselines": {}} | fields
    return Scorecard(accuracy=accuracy, **fields)


def constant(value: float) -> dict[str, NDArray[np.float64]]:
    return {"5w1s": value + np.tile([-0.01, 0.01], 50)}


def failed(checks: tuple[GateCheck, ...]) -> list[str]:
    return [check.name for check in checks if not check.passed]


def simulated(draw: np.random.Generator, gain: float) -> tuple[Scorecard, Scorecard]:
    """Challenger and champion on 1,000 episodes: the same hard and easy ones, answers drawn apart."""
    difficulty = draw.normal(0, SHARED_SD, N_EPISODES)
    champion = draw.binomial(N_QUERIES, np.clip(0.90 + difficulty, 0, 1)) / N_QUERIES
    challenger = draw.binomial(N_QUERIES, np.clip(0.90 + gain + difficulty, 0, 1)) / N_QUERIES
    return scorecard({"5w1s": challenger}, weights_sha256="b" * 64), scorecard({"5w1s": champion})


def test_of_equal_models_at_most_one_in_twenty_is_called_better() -> None:
    draw = np.random.default_rng(1)
    verdicts = [decide(*simulated(draw, 0.0), PromotionSettings()).verdict for _ in range(1_000)]
    assert 0 < verdicts.count("better") <= 50
    assert 0 < verdicts.count("worse") <= 50


def test_a_gain_of_one_point_is_found_in_nineteen_of_twenty_comparisons() -> None:
    draw = np.random.default_rng(2)
    promoted = [decide(*simulated(draw, 0.01), PromotionSettings()).promote for _ in range(1_000)]
    assert sum(promoted) >= 950


def test_the_interval_of_the_difference_covers_the_true_one_in_nineteen_of_twenty_comparisons() -> None:
    draw = np.random.default_rng(3)
    covered = 0
    for _ in range(1_000):
        one, other = (
            {"5w1s": draw.normal(mean, 0.1, 200), "5w5s": draw.normal(mean, 0.02, 1_000)} for mean in (0.92, 0.90)
        )
        found = paired_difference(one, other)
        covered += abs(found.mean - 0.02) <= found.half_width
    assert 930 <= covered <= 970


def test_a_difference_is_that_of_each_episode() -> None:
    """By hand: differences 0.1, 0.3 -> mean 0.2, standard error 0.1, t(0.975, 1) = 12.706."""
    found = paired_difference({"s": np.array([0.5, 0.9])}, {"s": np.array([0.4, 0.6])})
    assert found.mean == pytest.approx(0.2)
    assert found.half_width == pytest.approx(1.2706, rel=1e-4)


def test_the_first_version_needs_no_champion() -> None:
    decision = decide(scorecard(constant(0.9)), None, PromotionSettings())
    assert (decision.verdict, decision.promote, decision.difference) == ("first", True, None)


def test_the_first_version_is_refused_below_a_floor() -> None:
    decision = decide(scorecard(constant(0.9)), None, PromotionSettings(floors={"5w1s": 0.95}))
    assert not decision.promote
    assert decision.reason == "first; floor of 5w1s 90.00%, need at least 95.00%"


def test_a_floor_of_a_setting_that_was_not_scored_is_refused() -> None:
    decision = decide(scorecard(constant(0.9)), None, PromotionSettings(floors={"20w1s": 0.5}))
    assert failed(decision.checks) == ["floor of 20w1s"]


def test_the_same_weights_again_are_no_difference_and_promote_nothing() -> None:
    same = scorecard(constant(0.9))
    decision = decide(same, same, PromotionSettings(required_gain=-0.01))
    assert decision.verdict == "no difference"
    assert failed(decision.checks) == ["other weights"]
    assert not decision.promote


def test_another_algorithm_on_the_same_weights_is_another_model() -> None:
    champion = scorecard(constant(0.9), algorithm="ridge")
    assert decide(scorecard(constant(0.95), algorithm="lda"), champion, PromotionSettings()).promote
    same = decide(scorecard(constant(0.95), algorithm="ridge"), champion, PromotionSettings())
    assert failed(same.checks) == ["other weights"]


def test_a_negative_required_gain_is_a_non_inferiority_margin() -> None:
    champion = scorecard(constant(0.9))
    challenger = scorecard(constant(0.897), weights_sha256="b" * 64)
    assert decide(challenger, champion, PromotionSettings()).verdict == "worse"
    assert not decide(challenger, champion, PromotionSettings()).promote
    assert not decide(challenger, champion, PromotionSettings(required_gain=-0.002)).promote
    assert decide(challenger, champion, PromotionSettings(required_gain=-0.004)).promote


def test_other_episodes_or_other_settings_are_not_compared() -> None:
    challenger = scorecard(constant(0.95), weights_sha256="b" * 64)
    for champion in (
        scorecard(constant(0.5), episodes="f" * 64),
        scorecard(constant(0.5) | {"5w5s": np.zeros(100)}),
    ):
        decision = decide(challenger, champion, PromotionSettings())
        assert (decision.verdict, decision.promote, decision.difference) == ("not comparable", False, None)
        assert failed(decision.checks) == ["same episodes"]


def test_a_drop_in_one_group_refuses_a_better_mean() -> None:
    champion = scorecard(constant(0.9), group_accuracy={"Greek": 0.9, "Latin": 0.9})
    challenger = scorecard(
        constant(0.95), weights_sha256="b" * 64, group_accuracy={"Greek": 0.85, "Latin": 0.99, "new": 0.1}
    )
    assert decide(challenger, champion, PromotionSettings()).promote
    decision = decide(challenger, champion, PromotionSettings(max_group_drop=0.02))
    assert decision.verdict == "better" and not decision.promote
    assert "drop in a group 5.00 points in Greek, need at most 2.00" in decision.reason


def test_a_baseline_that_is_not_beaten_refuses_unless_it_need_not_be() -> None:
    card = scorecard(constant(0.9), baselines={"pixels": {"5w1s": 0.5}, "untrained": {"5w1s": 0.9}})
    decision = decide(card, None, PromotionSettings())
    assert failed(decision.checks) == ["baseline untrained"]
    assert "not beaten in 5w1s" in decision.reason
    assert decide(card, None, PromotionSettings(beat_baselines=False)).promote


@pytest.mark.parametrize(
    ("lead", "found"),
    [
        (None, "none was scored"),
        (
            Lead(over="pretrained, ridge", difference=Interval(mean=0.002, half_width=0.003)),
            "at least -0.10 points over",
        ),
        (Lead(over="pretrained, ridge", difference=Interval(mean=0.004, half_width=0.003)), None),
        (Lead(over="pretrained, ridge", difference=Interval(mean=-0.002, half_width=0.003), is_head=True), None),
        (
            Lead(over="pretrained, ridge", difference=Interval(mean=-0.004, half_width=0.003), is_head=True),
            "at most -0.10 points over pretrained, ridge, need not to be behind it",
        ),
    ],
)
def test_the_gate_can_ask_for_a_lead_over_the_best_head_on_the_pretrained_backbone(
    lead: Lead | None, found: str | None
) -> None:
    card = scorecard(constant(0.9), pretrained=lead)
    assert decide(card, None, PromotionSettings()).promote
    decision = decide(card, None, PromotionSettings(beat_pretrained=True))
    assert failed(decision.checks) == ([] if found is None else ["best pretrained head"])
    assert (found or "first") in decision.reason


@pytest.mark.parametrize(
    ("measured", "limit"),
    [
        ({"calibration_error": 0.06}, {"max_calibration_error": 0.05}),
        ({"adapt_ms": 11.0}, {"max_adapt_ms": 10.0}),
        ({"classify_ms": 1.1}, {"max_classify_ms": 1.0}),
        ({}, {"max_classify_ms": 1.0}),
    ],
)
def test_limits_refuse_what_is_above_them_or_was_not_measured(
    measured: dict[str, float], limit: dict[str, float]
) -> None:
    card = scorecard(constant(0.9), **measured)
    assert decide(card, None, PromotionSettings()).promote
    assert not decide(card, None, PromotionSettings(**limit)).promote
    below = replace(card, **{name.removeprefix("max_"): value for name, value in limit.items()})
    assert decide(below, None, PromotionSettings(**limit)).promote


@pytest.mark.parametrize(
    ("after", "refused"), [({"parts": 0.89, "tools": 0.7}, []), ({"parts": 0.95, "tools": 0.6}, ["drop in a gallery"])]
)
def test_a_drop_in_one_gallery_refuses_a_better_mean(after: dict[str, float], refused: list[str]) -> None:
    challenger, champion = scorecard(constant(0.95), weights_sha256="b" * 64), scorecard(constant(0.90))
    galleries = {name: (before, after[name]) for name, before in {"parts": 0.9, "tools": 0.7}.items()}
    decision = decide(challenger, champion, PromotionSettings(max_gallery_drop=0.02), galleries)
    assert failed(decision.checks) == refused
    assert decide(challenger, champion, PromotionSettings(), galleries).promote
