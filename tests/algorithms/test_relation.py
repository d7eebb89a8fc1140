"""Relation Networks against the paper's module, pair by pair."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.algorithms import relation
from kshot.algorithms.maths.losses import SquaredErrorConfig
from kshot.algorithms.relation import Relation, RelationModule
from kshot.backbones.contract import Flatten
from kshot.episodes.episode import EpisodeBatch
from tests.algorithms.random_features import FeatureProblem, problems

MAPS = [(12, 1, 1), (3, 2, 2), (2, 6, 5)]


def module_of(map_shape: tuple[int, int, int]) -> RelationModule:
    torch.manual_seed(0)
    module = RelationModule(map_shape, width=4).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def normalised(x: Tensor, norm: torch.nn.GroupNorm) -> Tensor:
    """x (F, H, W) by its own mean and variance."""
    weight, bias = norm.weight[:, None, None], norm.bias[:, None, None]
    return (x - x.mean()) / (x.var(correction=0) + norm.eps).sqrt() * weight + bias


def block(x: Tensor, weight: Tensor, norm: torch.nn.GroupNorm) -> Tensor:
    x = F.conv2d(x[None], weight, padding=weight.shape[-1] // 2)[0]
    x = normalised(x, norm).clamp_min(0)
    return F.max_pool2d(x[None], 2)[0] if min(x.shape[1:]) > 1 else x


def score(module: RelationModule, of_class: Tensor, query: Tensor) -> Tensor:
    """Equation 1 before its sigmoid: both maps one behind the other through the module of section 3.4."""
    pair = torch.cat([of_class.view(module.map_shape), query.view(module.map_shape)])
    both = torch.cat([module.first_of_class.weight, module.first_of_query.weight], dim=1)
    x = block(block(pair, both, module.first_norm), module.second.weight, module.second_norm)
    return module.score.weight[0] @ (module.hidden.weight @ x.flatten() + module.hidden.bias).clamp_min(0)


def by_hand(module: RelationModule, problem: FeatureProblem) -> Tensor:
    means = [problem.x[problem.y == n].mean(0) for n in range(problem.support.n_way)]
    return torch.stack([torch.stack([score(module, mean, query) for mean in means]) for query in problem.queries])


@pytest.mark.parametrize("map_shape", MAPS)
def test_a_logit_is_the_relation_of_the_query_and_the_mean_map_of_the_class(map_shape: tuple[int, int, int]) -> None:
    module = module_of(map_shape)
    learner = Relation(Flatten(), module)
    channels, height, width = map_shape
    for problem in problems(n_way=3, k_shot=2, n_features=channels * height * width):
        logits = learner.classify(learner.adapt(problem.support), problem.queries[None])[0]
        torch.testing.assert_close(logits, by_hand(module, problem))


def test_with_the_papers_loss_scores_are_regressed_to_one_and_zero() -> None:
    module = module_of((12, 1, 1))
    learner = Relation(Flatten(), module, SquaredErrorConfig().build())
    for problem in problems(n_way=3, k_shot=2):
        expected = torch.zeros((), dtype=torch.float64)
        for label, row in zip(problem.y.tolist(), by_hand(module, problem), strict=True):
            for n, logit in enumerate(row):
                expected = expected + (logit.sigmoid() - float(n == label)) ** 2
        episode = EpisodeBatch(
            support_x=problem.x[None],
            support_y=problem.y[None],
            query_x=problem.queries[None],
            query_y=problem.y[None],
            n_way=3,
            keys=torch.zeros(1, dtype=torch.int64),
        )
        torch.testing.assert_close(learner.meta_loss(episode)[0], expected / len(problem.queries))


def test_it_starts_from_differences() -> None:
    module = RelationModule((12, 1, 1), width=4)
    same, apart = torch.ones(1, 1, 12), torch.zeros(1, 1, 12)
    pair = module.of_classes(same) + module.first_of_query(same.view(1, 12, 1, 1))
    assert float(pair.detach().abs().max()) < 1e-6
    assert not torch.equal(module.scores(module.of_classes(same), same), module.scores(module.of_classes(apart), same))


def test_pairs_that_are_too_many_for_one_pass_are_scored_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    module = module_of((2, 6, 5))
    classes, queries = torch.randn(2, 5, 3, 60, dtype=torch.float64)
    whole = module.scores(module.of_classes(classes), queries)
    monkeypatch.setattr(relation, "_NUMBERS_AT_ONCE", 2 * 3 * 3 * 4 * 6 * 5)
    torch.testing.assert_close(module.scores(module.of_classes(classes), queries), whole)
