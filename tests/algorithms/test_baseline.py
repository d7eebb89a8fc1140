"""Baseline and Baseline++ against a loop over torch's own SGD."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.algorithms.baseline import Baseline, BaselineConfig
from kshot.algorithms.learner import Problem
from kshot.algorithms.maths.heads import CosineHead
from kshot.backbones.contract import Flatten
from kshot.episodes.episode import Support
from tests.algorithms.random_features import FeatureProblem, problems
from tests.toy_episodes import SHAPE, LinearBackbone


def plain_linear(problem: FeatureProblem, config: BaselineConfig) -> Tensor:
    weight = torch.zeros(4, problem.x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    fit = torch.optim.SGD([weight, bias], lr=config.learning_rate, momentum=0.9, dampening=0.9, weight_decay=1e-3)
    for _ in range(config.steps):
        fit.zero_grad()
        F.cross_entropy(F.linear(problem.x, weight, bias), problem.y).backward()
        fit.step()
    return F.linear(problem.queries, weight, bias).detach()


def plain_cosine(problem: FeatureProblem, config: BaselineConfig) -> Tensor:
    x = F.normalize(problem.x)
    weight = torch.stack([x[problem.y == n].mean(0) for n in range(4)]).requires_grad_()
    fit = torch.optim.SGD([weight], lr=config.learning_rate, momentum=0.9, dampening=0.9, weight_decay=1e-3)
    for _ in range(config.steps):
        fit.zero_grad()
        F.cross_entropy(2 * F.linear(x, F.normalize(weight)), problem.y).backward()
        fit.step()
    return 2 * F.linear(F.normalize(problem.queries), F.normalize(weight)).detach()


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_a_fit_equals_that_of_a_plain_loop(head: str) -> None:
    config = BaselineConfig(head=head, steps=20, learning_rate=0.3)
    learner = Baseline(Flatten(), config)
    for problem in problems():
        expected = (plain_linear if head == "linear" else plain_cosine)(problem, config)
        found = learner.classify(learner.adapt(problem.support), problem.queries[None])[0]
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_episodes_are_fitted_each_for_itself(head: str) -> None:
    learner = Baseline(Flatten(), BaselineConfig(head=head))
    first, second = list(problems(n_problems=2))
    both = Support(x=torch.stack([first.x, second.x]), y=torch.stack([first.y, second.y]), n_way=4)
    torch.testing.assert_close(learner.adapt(both).weight[1:], learner.adapt(second.support).weight)


def test_before_the_first_step_cosines_are_those_to_the_class_means() -> None:
    learner = Baseline(Flatten(), BaselineConfig(head="cosine")).with_inner_steps(0)
    for problem in problems(k_shot=1):
        found = learner.classify(learner.adapt(problem.support), problem.queries[None])[0]
        torch.testing.assert_close(found, 2 * F.normalize(problem.queries) @ F.normalize(problem.x).T)


def test_the_training_classes_are_told_apart_by_a_head_of_the_same_kind() -> None:
    learner = BaselineConfig(head="cosine").build(LinearBackbone(), Problem(train_shape=SHAPE, n_train_classes=201))
    assert isinstance(learner.class_head, CosineHead)
    logits = learner.class_logits(torch.randn(3, 16, generator=torch.Generator().manual_seed(1)))
    assert logits.shape == (3, 201)
    assert float(logits.detach().abs().max()) <= 10
