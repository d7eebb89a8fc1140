import math

import pytest
import torch

from kshot.algorithms.unknown import BASELINE, SCORES, UnknownRule, known_score

SUPPORT = torch.tensor([[0.0, 1.0], [3.0, 0.0]])
QUERY = torch.tensor([[0.0, 2.0], [30.0, 0.0]])
LOGITS = torch.tensor([[math.log(3.0), 0.0], [-5.0, -5.0]])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("max_probability", [0.75, 0.5]),
        ("max_logit", [math.log(3.0), -5.0]),
        ("nearest", [-1.0, -27.0]),
        ("nearest_direction", [0.0, 0.0]),
    ],
)
def test_each_score_is_the_one_of_its_paper(name: str, expected: list[float]) -> None:
    assert known_score(name, LOGITS, SUPPORT, QUERY).tolist() == pytest.approx(expected)  # type: ignore[arg-type]


def test_an_example_asked_again_is_at_distance_zero() -> None:
    far = SUPPORT + 1000  # where distances by products lose their digits
    assert known_score("nearest", LOGITS, far, far).tolist() == [0, 0]


def test_episodes_together_score_as_one_by_one() -> None:
    both = torch.stack([SUPPORT, QUERY])
    for name in (*SCORES, BASELINE):
        together = known_score(name, torch.stack([LOGITS, LOGITS]), both, both.flip(0))
        assert torch.equal(together[0], known_score(name, LOGITS, both[0], both[1]))


def test_a_threshold_lies_between_those_of_the_nearest_shots() -> None:
    rule = UnknownRule(score="nearest", thresholds=((1, -8.0), (4, -4.0)))
    assert rule.threshold(1) == -8 and rule.threshold(4) == -4
    assert rule.threshold(2) == pytest.approx(-6)  # half the way from 1 to 4, by the logarithm
    assert rule.threshold(0.5) == -8 and rule.threshold(100) == -4
