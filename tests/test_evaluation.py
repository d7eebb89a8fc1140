import numpy as np
import pytest
import torch

from kshot.algorithms.learner import Flatten
from kshot.algorithms.protonet import ProtoNet
from kshot.episode import EpisodeShape
from kshot.evaluation import (
    EpisodeScores,
    calibration_bins,
    class_accuracy,
    class_interval,
    confusions,
    fit_temperature,
    mean_interval,
    score_episodes,
)
from kshot.sampling import EpisodeIndices
from tests.toy_episodes import image_pools, point_gather


def answers(predicted: list[list[list[int]]], class_ids: list[list[int]]) -> EpisodeScores:
    found = np.array(predicted)
    certain = np.ones(found.shape)
    return EpisodeScores(predicted=found, class_ids=np.array(class_ids), confidence=certain, tempered=certain)


def test_the_interval_is_students() -> None:
    found = mean_interval(np.array([0.0, 1.0, 1.0, 0.0]))
    assert found.mean == 0.5
    assert found.half_width == pytest.approx(3.182446 * 0.577350 / 2, rel=1e-5)  # t(0.975, 3) * sd / sqrt(4)


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = [abs(i.mean - 0.7) <= i.half_width for i in (mean_interval(rng.normal(0.7, 0.1, 30)) for _ in range(2000))]
    assert 0.935 < np.mean(hits) < 0.965


def test_scores_count_right_answers_of_each_class() -> None:
    points = torch.tensor([[0.0], [1.0], [10.0], [11.0], [4.0], [9.0]])
    indices = EpisodeIndices(
        support=np.array([[[0], [2]]]), query=np.array([[[1, 5], [3, 4]]]), class_ids=np.array([[7, 3]])
    )
    scores = score_episodes(ProtoNet(Flatten()), indices, point_gather(points))
    assert scores.correct.tolist() == [[1, 1]]  # 9.0 is nearer to 10.0, 4.0 nearer to 0.0
    assert scores.accuracy.tolist() == [0.5]


def test_class_accuracy_adds_up_over_episodes() -> None:
    scores = answers([[[0, 0], [1, 0]], [[1, 1], [1, 1]]], class_ids=[[5, 9], [9, 5]])
    classes, asked, accuracy = class_accuracy(scores)
    assert classes.tolist() == [5, 9]
    assert asked.tolist() == [4, 4]
    assert accuracy.tolist() == [1.0, 0.25]


def test_the_pixel_baseline_is_the_nearest_centroid_of_the_pixels() -> None:
    shape = EpisodeShape(n_way=4, k_shot=3, n_query=2)
    _, pool, gather = image_pools(shape)
    found = score_episodes(ProtoNet(Flatten()), pool.indices, gather).accuracy
    expected = []
    for support, query in zip(pool.indices.support, pool.indices.query, strict=True):
        centroids = gather(support).flatten(2).mean(1)
        nearest = torch.cdist(gather(query).flatten(2).flatten(0, 1), centroids).argmin(1).view(4, 2)
        expected.append(float((nearest == torch.arange(4)[:, None]).double().mean()))
    assert found.tolist() == pytest.approx(expected)


def test_confusions_count_among_the_episodes_that_hold_both_classes() -> None:
    scores = answers([[[0, 1], [1, 1]], [[0, 0], [0, 1]], [[0, 0], [1, 1]]], class_ids=[[5, 9], [9, 5], [5, 7]])
    found = confusions(scores)
    assert found.true.tolist() == [5]
    assert found.predicted.tolist() == [9]
    assert (found.times.tolist(), found.asked.tolist()) == ([2], [4]), "the third episode holds no 9"


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
    indices = EpisodeIndices(support=np.array([[[0], [1]]]), query=query, class_ids=np.array([[0, 1]]))
    assert fit_temperature(ProtoNet(Flatten()), indices, point_gather(points)) == pytest.approx(9, rel=0.1)


def test_the_interval_over_classes_is_wider_where_classes_differ_more() -> None:
    ids = np.arange(100).reshape(50, 2)
    alike = answers([[[0, 1], [1, 0]]] * 50, class_ids=ids.tolist())
    apart = answers([[[0, 0], [0, 0]]] * 50, class_ids=ids.tolist())
    assert class_interval(alike, seed=1) == (0.5, 0.5)
    low, high = class_interval(apart, seed=1)
    assert low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.01) and high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.01)
    assert class_interval(apart, seed=1) == (low, high)
