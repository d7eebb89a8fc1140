"""Siamese networks against the paper's equations, pair by pair."""

import pytest
import torch
from torch import Tensor

from kshot.algorithms.siamese import PairScore, Siamese
from kshot.backbones.contract import Flatten
from kshot.episodes.episode import EpisodeBatch, MixedLabels
from tests.algorithms.random_features import FeatureProblem, problems


def siamese(n_features: int = 12) -> Siamese:
    score = PairScore(n_features).double()
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        score.weight.copy_(torch.randn(n_features, generator=draw))
    return Siamese(Flatten(), score)


def likeness(learner: Siamese, one: Tensor, other: Tensor) -> Tensor:
    """The probability of section 3.1 with the weights alpha that the learner's stand for, and a bias."""
    root = len(one) ** 0.5
    total = root * learner.score.threshold
    for weight, a, b in zip(learner.score.weight, one, other, strict=True):
        total = total - weight.abs() / root * (a - b).abs()
    return total.sigmoid()


def episode_of(problem: FeatureProblem, mixed: MixedLabels | None = None) -> EpisodeBatch:
    return EpisodeBatch(
        support_x=problem.x[None],
        support_y=problem.y[None],
        query_x=problem.queries[None],
        query_y=problem.y[None],
        n_way=problem.support.n_way,
        keys=torch.zeros(1, dtype=torch.int64),
        mixed=mixed,
    )


@pytest.mark.parametrize("k_shot", [1, 3])
def test_the_logit_of_a_class_is_the_mean_logit_of_being_alike_its_items(k_shot: int) -> None:
    learner = siamese()
    for problem in problems(n_way=3, k_shot=k_shot):
        logits = learner.classify(learner.adapt(problem.support), problem.queries[None])[0]
        for query, row in zip(problem.queries, logits, strict=True):
            for n in range(3):
                pairs = [likeness(learner, query, item).logit() for item in problem.x[problem.y == n]]
                torch.testing.assert_close(row[n], torch.stack(pairs).mean())


def expected_loss(learner: Siamese, problem: FeatureProblem, other_y: Tensor, share: float) -> Tensor:
    """Cross-entropies of section 3.2, averaged over the pairs that are alike and over the others, and then over both.

    The queries have the labels `problem.y` with a share, and `other_y` with the rest.
    """
    losses: dict[bool, list[Tensor]] = {True: [], False: []}
    for query, own, other in zip(problem.queries, problem.y.tolist(), other_y.tolist(), strict=True):
        for item, label in zip(problem.x, problem.y.tolist(), strict=True):
            p = likeness(learner, query, item)
            of_alike = {True: -p.log(), False: -(1 - p).log()}
            losses[own == label].append(share * of_alike[own == label] + (1 - share) * of_alike[other == label])
    return (torch.stack(losses[True]).mean() + torch.stack(losses[False]).mean()) / 2


def test_the_loss_is_the_cross_entropy_of_pairs_half_of_which_are_alike() -> None:
    learner = siamese()
    for problem in problems(n_way=4, k_shot=2):
        expected = expected_loss(learner, problem, problem.y, 1.0)
        torch.testing.assert_close(learner.meta_loss(episode_of(problem))[0], expected)


def test_queries_that_were_mixed_are_alike_to_the_items_of_both_classes() -> None:
    learner = siamese()
    for problem in problems(n_way=3, k_shot=2):
        other_y = problem.y.roll(2)
        mixed = MixedLabels(y=other_y[None], share=torch.tensor([0.75], dtype=torch.float64))
        expected = expected_loss(learner, problem, other_y, 0.75)
        torch.testing.assert_close(learner.meta_loss(episode_of(problem, mixed))[0], expected)


def test_a_difference_never_makes_items_more_alike() -> None:
    learner = siamese()
    item = torch.zeros(1, 1, 12, dtype=torch.float64)
    apart = torch.eye(12, dtype=torch.float64)[None]
    assert bool((learner.score(apart, item) <= learner.score(item, item)).all())
