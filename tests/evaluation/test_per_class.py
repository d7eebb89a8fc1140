import numpy as np
import pytest

from kshot.evaluation.per_class import class_accuracy, class_interval, confusions
from kshot.evaluation.scoring import EpisodeScores


def answers(predicted: list[list[list[int]]], class_ids: list[list[int]]) -> EpisodeScores:
    found = np.array(predicted)
    certain = np.ones(found.shape)
    return EpisodeScores(predicted=found, class_ids=np.array(class_ids), confidence=certain, tempered=certain)


def test_class_accuracy_adds_up_over_episodes() -> None:
    scores = answers([[[0, 0], [1, 0]], [[1, 1], [1, 1]]], class_ids=[[5, 9], [9, 5]])
    classes, asked, accuracy = class_accuracy(scores)
    assert classes.tolist() == [5, 9]
    assert asked.tolist() == [4, 4]
    assert accuracy.tolist() == [1.0, 0.25]


def test_confusions_count_among_the_episodes_that_hold_both_classes() -> None:
    scores = answers([[[0, 1], [1, 1]], [[0, 0], [0, 1]], [[0, 0], [1, 1]]], class_ids=[[5, 9], [9, 5], [5, 7]])
    found = confusions(scores)
    assert found.true.tolist() == [5]
    assert found.predicted.tolist() == [9]
    assert (found.times.tolist(), found.asked.tolist()) == ([2], [4]), "the third episode holds no 9"


def test_the_interval_over_classes_is_wider_where_classes_differ_more() -> None:
    ids = np.arange(100).reshape(50, 2)
    alike = answers([[[0, 1], [1, 0]]] * 50, class_ids=ids.tolist())
    apart = answers([[[0, 0], [0, 0]]] * 50, class_ids=ids.tolist())
    assert class_interval(alike, seed=1) == (0.5, 0.5)
    low, high = class_interval(apart, seed=1)
    assert low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.01) and high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.01)
    assert class_interval(apart, seed=1) == (low, high)
