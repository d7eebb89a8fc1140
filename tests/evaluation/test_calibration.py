import numpy as np
import pytest
import torch

from kshot.algorithms.protonet import ProtoNet
from kshot.backbones.contract import Flatten
from kshot.episodes.sampling import EpisodeIndices
from kshot.evaluation.calibration import calibration_bins, fit_temperature
from tests.toy_episodes import point_gather


def test_calibration_error_is_the_mean_distance_of_confidence_and_accuracy() -> None:
    """By hand: 4 queries of confidence 0.95 of which 3 are right, 1 of confidence 0.55 that is right."""
    bins = calibration_bins(np.array([0.95, 0.95, 0.95, 0.95, 0.55]), np.array([1, 1, 1, 0, 1], dtype=bool), n_bins=10)
    assert bins.count.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 4]
    assert bins.expected_calibration_error == pytest.approx((4 * 0.20 + 0.45) / 5)


def test_the_temperature_of_overconfident_logits_is_found() -> None:
    """True odds exp(4 x); three times as large points have logits of nine times the log odds."""
    rng = np.random.default_rng(0)
    n = 4_000
    x = rng.uniform(-1, 1, n)
    is_first = rng.random(n) < 1 / (1 + np.exp(-4 * x))  # squared distances to -1 and 1 differ by 4 x
    points = torch.from_numpy(np.concatenate([[1.0, -1.0], x])).float()[:, None] * 3  # logits grow by 9
    order = np.argsort(~is_first, kind="stable")
    half = min(is_first.sum(), n - is_first.sum())
    query = np.stack([order[:half], order[-half:]])[None] + 2
    indices = EpisodeIndices(
        support=np.array([[[0], [1]]]), query=query, class_ids=np.array([[0, 1]]), keys=np.zeros(1, dtype=np.int64)
    )
    assert fit_temperature(ProtoNet(Flatten()), indices, point_gather(points)) == pytest.approx(9, rel=0.1)
