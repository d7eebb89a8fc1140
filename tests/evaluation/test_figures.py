"""The plots of settings: which points a line joins."""

from itertools import pairwise
from typing import Any

from kshot.evaluation.figures import accuracy_bars, shot_curves


def result(title: str, k_shot: int) -> dict[str, Any]:
    scores = {"accuracy": 0.5, "ci95": 0.1}
    return {"title": title, "k_shot": k_shot, "mode": "non-transductive", **scores, "baselines": {"pixels": scores}}


def test_a_line_joins_the_shots_of_one_way_and_one_sampler_with_its_weights() -> None:
    within = "within a domain: ink {}, oil {}"
    results = [result(f"5-way {k}-shot {within.format(w, 1 - w)}", k) for k in (5, 1) for w in (0, 1)]
    figure = shot_curves([*results, result("20-way 1-shot", 1)])
    assert figure is not None
    lines = {container.get_label(): container[0].get_xdata().tolist() for container in figure.axes[0].containers}
    assert lines == {f"5-way {within.format(w, 1 - w)}, non-transductive": [1, 5] for w in (0, 1)}


def test_two_domains_at_one_number_of_shots_are_no_curve() -> None:
    assert shot_curves([result(f"5-way 1-shot within a domain: {name} 1", 1) for name in ("ink", "oil")]) is None


def test_names_of_many_settings_stay_apart() -> None:
    title = "20-way 1-shot within a domain: glyphs 0, omniglot 1"
    figure = accuracy_bars([result(title, 1)] * 9)
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
