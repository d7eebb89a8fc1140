"""Logistic regression against scikit-learn's."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from kshot.algorithms.logistic import Logistic, LogisticConfig
from kshot.backbones.contract import Flatten
from kshot.episodes.episode import Support
from tests.algorithms.random_features import problems


@pytest.mark.parametrize("penalty", [0.01, 1.0])
@pytest.mark.parametrize("k_shot", [1, 5], ids=["fewer items than features", "more items than features"])
def test_probabilities_are_scikit_learns(k_shot: int, penalty: float) -> None:
    learner = Logistic(Flatten(), LogisticConfig(penalty=penalty))
    for problem in problems(k_shot=k_shot):
        plain = LogisticRegression(C=1 / penalty, tol=1e-9, max_iter=10_000)
        plain.fit(F.normalize(problem.x), problem.y)
        expected = torch.from_numpy(plain.predict_proba(F.normalize(problem.queries)))
        found = learner.classify(learner.adapt(problem.support), problem.queries[None])[0].softmax(1)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_fit_ends_where_the_gradient_vanishes() -> None:
    learner = Logistic(Flatten(), LogisticConfig(penalty=0.1))
    for problem in problems():
        head = learner.adapt(problem.support)
        weight, bias = (tensor.clone().requires_grad_() for tensor in (head.weight[0], head.bias[0]))
        x = F.normalize(problem.x)
        loss = F.cross_entropy(x @ weight.T + bias, problem.y, reduction="sum") + 0.05 * weight.square().sum()
        for gradient in torch.autograd.grad(loss, [weight, bias]):
            assert float(gradient.abs().max()) < 1e-7


def test_an_episode_is_fitted_the_same_whatever_stands_beside_it() -> None:
    learner = Logistic(Flatten(), LogisticConfig(penalty=0.01))
    first, second = list(problems(n_problems=2))
    x = torch.stack([first.x, 5 * second.x])
    together = learner.adapt(Support(x=x, y=torch.stack([first.y, second.y]), n_way=4))
    alone = learner.adapt(first.support)
    torch.testing.assert_close(together.weight[:1], alone.weight, rtol=1e-12, atol=1e-12)
