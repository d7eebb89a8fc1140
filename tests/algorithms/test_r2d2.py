"""R2D2 against ridge regression with an inverse written out, its derivatives too."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.algorithms.r2d2 import R2D2, R2D2Config
from kshot.backbones.contract import Flatten
from kshot.episodes.episode import EpisodeBatch, Support
from tests.algorithms.random_features import FeatureProblem, problems


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def plain_logits(learner: R2D2, problem: FeatureProblem) -> Tensor:
    """scale * x (X'X + n penalty I)^-1 X'Y, with a feature of 1 behind the others."""
    x = torch.cat([problem.x, torch.ones(len(problem.x), 1)], dim=1)
    queries = torch.cat([problem.queries, torch.ones(len(problem.queries), 1)], dim=1)
    penalty = len(x) * torch.exp(learner.log_penalty)
    inverse = torch.linalg.inv(x.T @ x + penalty * torch.eye(x.shape[1]))
    return learner.scale * queries @ inverse @ x.T @ F.one_hot(problem.y).double()


def episode(problem: FeatureProblem) -> EpisodeBatch:
    return EpisodeBatch(
        support_x=problem.x[None],
        support_y=problem.y[None],
        query_x=problem.queries[None],
        query_y=problem.y[None],
        n_way=4,
        keys=torch.zeros(1, dtype=torch.int64),
    )


few_and_many = pytest.mark.parametrize("k_shot", [1, 5], ids=["fewer items than features", "more items than features"])


@few_and_many
def test_logits_and_gradients_are_those_of_an_inverse_written_out(k_shot: int) -> None:
    learner = R2D2(Flatten(), R2D2Config(penalty=0.3, scale=2.0))
    for problem in problems(k_shot=k_shot):
        expected = plain_logits(learner, problem)
        found = learner.classify(learner.adapt(problem.support), problem.queries[None])[0]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
        loss = learner.meta_loss(episode(problem)).sum()
        plain = F.cross_entropy(expected, problem.y)
        parameters = list(learner.parameters())
        for ours, theirs in zip(
            torch.autograd.grad(loss, parameters), torch.autograd.grad(plain, parameters), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@few_and_many
def test_the_gradient_by_the_features_equals_a_finite_difference(k_shot: int) -> None:
    learner = R2D2(Flatten(), R2D2Config(penalty=0.3, scale=2.0))
    problem = next(problems(k_shot=k_shot))

    def logits(x: Tensor, queries: Tensor) -> Tensor:
        return learner.classify(learner.adapt(Support(x=x[None], y=problem.y[None], n_way=4)), queries[None])

    assert torch.autograd.gradcheck(logits, (problem.x.requires_grad_(), problem.queries[:3].requires_grad_()))


def test_on_features_the_scale_and_penalty_are_the_learners_own() -> None:
    learner = R2D2(Flatten(), R2D2Config())
    with torch.no_grad():
        learner.scale.fill_(3.0)
    assert learner.on_features().scale is learner.scale
    assert learner.on_features().log_penalty is learner.log_penalty
