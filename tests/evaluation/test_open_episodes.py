import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve

from kshot.algorithms.protonet import ProtoNet
from kshot.algorithms.unknown import UnknownRule
from kshot.backbones.contract import Flatten
from kshot.episodes.sampling import EpisodeIndices
from kshot.evaluation.unknown import OpenScores, fit_unknown_rule, score_open_episodes, unknown_metrics
from tests.toy_episodes import point_gather


def two_episodes() -> tuple[torch.Tensor, EpisodeIndices]:
    """Points on a line: classes at 0 and 10 in the first episode, at 10 and 100 in the second; two queries of each."""
    points = torch.tensor([0.0, 0.1, 0.2, 10.0, 10.1, 10.2, 100.0, 100.1, 100.2])[:, None]
    items = np.arange(9).reshape(3, 3)
    classes = np.array([[0, 1], [1, 2]])
    return points, EpisodeIndices(
        support=items[classes][:, :, :1], query=items[classes][:, :, 1:], class_ids=classes, keys=np.zeros(2, np.int64)
    )


def test_the_queries_of_the_next_episode_are_of_no_class_unless_both_have_it() -> None:
    points, indices = two_episodes()
    learner = ProtoNet(Flatten())
    found = score_open_episodes(learner, indices, point_gather(points), ["nearest"], temperature=1.0)["nearest"]
    assert found.known == pytest.approx(-np.array([[0.1, 0.2, 0.1, 0.2]] * 2), abs=1e-4)
    nan = np.nan
    assert found.unknown[0] == pytest.approx([nan, nan, -90.1, -90.2], nan_ok=True, abs=1e-3)  # class 1 is in both
    assert found.unknown[1] == pytest.approx([-9.9, -9.8, nan, nan], nan_ok=True, abs=1e-3)
    assert found.auroc == 1 and found.false_positive_rate == 0


def test_both_measures_equal_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    known, unknown = rng.normal(1, 1, (40, 50)), rng.normal(0, 1, (40, 50))
    found = OpenScores(known=known, unknown=unknown)
    truth = np.r_[np.ones(2000), np.zeros(2000)]
    scores = np.r_[known.ravel(), unknown.ravel()]
    assert found.auroc == pytest.approx(roc_auc_score(truth, scores))
    false_positives, recall, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert found.false_positive_rate == pytest.approx(np.interp(0.95, recall, false_positives), abs=0.006)


def many_episodes(n_episodes: int = 60) -> tuple[torch.Tensor, EpisodeIndices]:
    """Two of 30 classes around random points, with 1 example and 8 queries of each."""
    rng = np.random.default_rng(1)
    centres = rng.normal(0, 3, (30, 4))
    points = centres[:, None] + rng.normal(0, 1, (30, 9, 4))
    items = np.arange(270).reshape(30, 9)
    classes = np.array([rng.choice(30, 2, replace=False) for _ in range(n_episodes)])
    return torch.from_numpy(points.reshape(-1, 4)).float(), EpisodeIndices(
        support=items[classes][:, :, :1],
        query=items[classes][:, :, 1:],
        class_ids=classes,
        keys=np.zeros(n_episodes, np.int64),
    )


def test_each_threshold_keeps_95_of_100_known_items_at_its_shots() -> None:
    points, indices = many_episodes()
    learner, gather = ProtoNet(Flatten()), point_gather(points)
    rule = fit_unknown_rule(learner, indices, gather, temperature=2.0)
    assert rule is not None
    assert [shots for shots, _ in rule.thresholds] == [1, 2, 4]  # with 8 examples no query would be left
    assert rule.threshold(4) > rule.threshold(1)  # the nearest of four is nearer
    found = unknown_metrics(learner, rule, indices, gather, temperature=2.0, seed=0)
    assert found["recall"] == pytest.approx(0.95, abs=0.005)
    assert found["auroc"] > found["baseline"]["auroc"] + 0.1
    assert 0 < found["auroc_ci95"] < 0.05 and 0 < found["false_positive_rate_at_recall_ci95"] < 0.2


def test_a_pool_whose_episodes_share_all_classes_gives_no_rule() -> None:
    points, indices = many_episodes()
    same = EpisodeIndices(
        support=indices.support[[0, 0]],
        query=indices.query[[0, 0]],
        class_ids=indices.class_ids[[0, 0]],
        keys=indices.keys[:2],
    )
    learner, gather = ProtoNet(Flatten()), point_gather(points)
    assert fit_unknown_rule(learner, same, gather, temperature=1.0) is None
    rule = UnknownRule(score="nearest", thresholds=((1, 0.0),))
    assert unknown_metrics(learner, rule, same, gather, temperature=1.0, seed=0) == {}
