"""TIM against the two updates of its paper, item by item, and against what they are to minimise."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.algorithms.answering import NON_TRANSDUCTIVE, TRANSDUCTIVE, normalization_modes
from kshot.algorithms.tim import TIM, TIMConfig
from kshot.backbones.contract import Flatten
from tests.algorithms.random_features import FeatureProblem, problems


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def class_means(problem: FeatureProblem) -> list[Tensor]:
    x = unit(problem.x)
    return [x[problem.y == k].mean(0) for k in range(problem.support.n_way)]


def probabilities(z: Tensor, weights: list[Tensor], temperature: float) -> Tensor:
    scores = torch.stack([torch.exp(-temperature / 2 * ((w - z) ** 2).sum()) for w in weights])
    return scores / scores.sum()


def after_one_step(problem: FeatureProblem, weights: list[Tensor], config: TIMConfig) -> list[Tensor]:
    """Proposition 1 of the paper, with lambda and alpha."""
    support, queries = unit(problem.x), unit(problem.queries)
    of_support, alpha = config.support_weight / (1 + config.certainty_weight), config.certainty_weight
    p_support, p = ([probabilities(z, weights, config.temperature) for z in items] for items in (support, queries))
    q = []
    for row in p:
        unnormed = torch.stack(
            [row[k] ** (1 + alpha) / sum(other[k] ** (1 + alpha) for other in p) ** 0.5 for k in range(len(weights))]
        )
        q.append(unnormed / unnormed.sum())
    moved = []
    for k, w in enumerate(weights):
        total, mass = torch.zeros_like(w), torch.zeros((), dtype=w.dtype)
        for z, label, row in zip(support, problem.y, p_support, strict=True):
            y = float(label == k)
            total = total + of_support * (y * z + row[k] * (w - z))
            mass = mass + of_support * y
        share = len(support) / len(queries)
        for z, assigned, row in zip(queries, q, p, strict=True):
            total = total + share * (assigned[k] * z + row[k] * (w - z))
            mass = mass + share * assigned[k]
        moved.append(total / mass)
    return moved


def objective(learner: TIM, problem: FeatureProblem, weights: Tensor) -> Tensor:
    """Section 3.2: lambda times the cross-entropy of the support set, minus the weighted mutual information."""
    config = learner.config

    def log_p(items: Tensor) -> Tensor:
        return (-config.temperature / 2 * torch.cdist(unit(items), weights) ** 2).log_softmax(1)

    of_queries = log_p(problem.queries)
    marginal = of_queries.exp().mean(0)
    certainty = (of_queries.exp() * of_queries).sum(1).mean()
    information = -(marginal * marginal.log()).sum() + config.certainty_weight * certainty
    return config.support_weight * F.cross_entropy(log_p(problem.x), problem.y) - information


def weights_of(learner: TIM, problem: FeatureProblem) -> Tensor:
    return learner.fitted(learner.adapt(problem.support), unit(problem.queries)[None])[0]


@pytest.mark.parametrize("k_shot", [1, 5])
@pytest.mark.parametrize("config", [TIMConfig(steps=3), TIMConfig(steps=3, support_weight=1.0, certainty_weight=0.4)])
def test_the_steps_are_those_of_the_papers_proposition(config: TIMConfig, k_shot: int) -> None:
    learner = TIM(Flatten(), config)
    for problem in problems(k_shot=k_shot):
        weights = class_means(problem)
        for _ in range(config.steps):
            weights = after_one_step(problem, weights, config)
        torch.testing.assert_close(weights_of(learner, problem), torch.stack(weights))
        expected = torch.stack([probabilities(z, weights, config.temperature) for z in unit(problem.queries)])
        found = learner.classify(learner.adapt(problem.support), problem.queries[None])[0].softmax(1)
        torch.testing.assert_close(found, expected)


def test_the_steps_lower_what_is_minimised_and_end_where_they_stay() -> None:
    for problem in problems(k_shot=1):
        first, last, after = (weights_of(TIM(Flatten(), TIMConfig(steps=n)), problem) for n in (1, 2000, 2001))
        learner = TIM(Flatten(), TIMConfig())
        assert objective(learner, problem, last) < objective(learner, problem, first)
        assert objective(learner, problem, first) < objective(learner, problem, torch.stack(class_means(problem)))
        torch.testing.assert_close(after, last, rtol=1e-4, atol=1e-4)


def test_what_is_served_is_the_nearest_mean_of_features_of_unit_length() -> None:
    modes = normalization_modes(TIM(Flatten(), TIMConfig()))
    assert list(modes) == [TRANSDUCTIVE, NON_TRANSDUCTIVE]
    for problem in problems(k_shot=2):
        learner = modes[NON_TRANSDUCTIVE]
        logits = learner.classify(learner.adapt(problem.support), problem.queries[None])[0]
        distances = torch.cdist(unit(problem.queries), torch.stack(class_means(problem))) ** 2
        torch.testing.assert_close(logits, -7.5 * distances)


def test_queries_that_come_together_tell_more_than_queries_alone() -> None:
    right: dict[str, list[float]] = {TRANSDUCTIVE: [], NON_TRANSDUCTIVE: []}
    for problem in problems(k_shot=1, n_problems=20):
        for mode, learner in normalization_modes(TIM(Flatten(), TIMConfig())).items():
            queries = torch.cat([problem.queries, *(more.queries for more in similar(problem))])
            labels = problem.y.repeat(len(queries) // len(problem.y))
            logits = learner.classify(learner.adapt(problem.support), queries[None])[0]
            right[mode].append(float((logits.argmax(1) == labels).double().mean()))
    assert sum(right[TRANSDUCTIVE]) > sum(right[NON_TRANSDUCTIVE]) + 0.5


def similar(problem: FeatureProblem) -> list[FeatureProblem]:
    """More queries about the same places."""
    draw = torch.Generator().manual_seed(9)
    noise = 0.4 * torch.randn(8, *problem.queries.shape, generator=draw, dtype=torch.float64)
    return [FeatureProblem(x=problem.x, y=problem.y, queries=problem.queries + one) for one in noise]
