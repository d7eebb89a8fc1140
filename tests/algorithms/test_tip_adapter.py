"""Tip-Adapter's cache against a loop."""

import math

import torch
from torch.nn import functional as F

from kshot.algorithms.tip_adapter import TipAdapter, TipAdapterConfig
from kshot.backbones.contract import Flatten
from kshot.episodes.episode import Support
from tests.algorithms.random_features import problems


def test_each_support_item_votes_by_its_cosine() -> None:
    learner = TipAdapter(Flatten(), TipAdapterConfig(alpha=2.0, beta=3.0))
    for problem in problems():
        logits = learner.classify(learner.adapt(problem.support), problem.queries[None])[0]
        expected = torch.zeros_like(logits)
        for i, query in enumerate(problem.queries):
            for item, label in zip(problem.x, problem.y, strict=True):
                cosine = float(F.cosine_similarity(query, item, dim=0))
                expected[i, label] += 2.0 * math.exp(-3.0 * (1 - cosine)) / 5
        torch.testing.assert_close(logits, expected)


def test_more_items_of_a_class_do_not_make_it_likelier() -> None:
    learner = TipAdapter(Flatten(), TipAdapterConfig())
    (problem,) = problems(n_way=2, k_shot=1, n_problems=1)
    twice = Support(x=problem.x[[0, 0, 1]][None], y=torch.tensor([[0, 0, 1]]), n_way=2)
    once, again = (learner.classify(learner.adapt(one), problem.queries[None]) for one in (problem.support, twice))
    torch.testing.assert_close(again, once)
