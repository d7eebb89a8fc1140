"""Ridge regression against scikit-learn's."""

import pytest
import torch
from sklearn.linear_model import Ridge as PlainRidge
from torch.nn import functional as F

from kshot.algorithms.maths.regularised import times_inverse
from kshot.algorithms.ridge import Ridge, RidgeConfig
from kshot.backbones.contract import Flatten
from kshot.episodes.episode import Support
from tests.algorithms.random_features import problems


@pytest.mark.parametrize("penalty", [1e-3, 1.0])
@pytest.mark.parametrize("k_shot", [1, 5], ids=["fewer items than features", "more items than features"])
def test_logits_are_ten_times_what_scikit_learns_ridge_predicts(k_shot: int, penalty: float) -> None:
    learner = Ridge(Flatten(), RidgeConfig(penalty=penalty))
    for problem in problems(k_shot=k_shot):
        x, queries = F.normalize(problem.x), F.normalize(problem.queries)
        spread = float((x - x.mean(0)).square().sum(1).mean())
        plain = PlainRidge(alpha=penalty * spread).fit(x, F.one_hot(problem.y).double())
        logits = learner.classify(learner.adapt(problem.support), problem.queries[None])[0]
        torch.testing.assert_close(logits, 10 * torch.from_numpy(plain.predict(queries)), rtol=1e-9, atol=1e-9)


def test_a_support_set_of_equal_items_is_answered_alike_for_all_classes() -> None:
    learner = Ridge(Flatten(), RidgeConfig())
    support = Support(x=torch.ones(1, 4, 3), y=torch.tensor([[0, 0, 1, 1]]), n_way=2)
    logits = learner.classify(learner.adapt(support), torch.eye(3)[None])
    torch.testing.assert_close(logits, torch.full((1, 3, 2), 5.0))


@pytest.mark.parametrize(("n_rows", "n_features"), [(3, 7), (7, 3), (5, 5)])
def test_an_inverse_is_applied_in_either_space(n_rows: int, n_features: int) -> None:
    draw = torch.Generator().manual_seed(1)
    rows = torch.randn(2, n_rows, n_features, generator=draw, dtype=torch.float64)
    right = torch.randn(2, 4, n_features, generator=draw, dtype=torch.float64)
    penalty = torch.tensor([0.1, 2.0], dtype=torch.float64)
    system = rows.transpose(1, 2) @ rows + penalty[:, None, None] * torch.eye(n_features, dtype=torch.float64)
    torch.testing.assert_close(times_inverse(right, rows, penalty), right @ torch.linalg.inv(system))
