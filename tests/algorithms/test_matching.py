"""Matching Networks against the paper's equations, item by item."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from kshot.algorithms.learner import Problem
from kshot.algorithms.matching import FullContext, Matching, MatchingConfig
from kshot.algorithms.maths.attention import class_log_sums
from kshot.backbones.contract import Flatten
from kshot.episodes.episode import Support
from tests.algorithms.random_features import FeatureProblem, problems
from tests.toy_episodes import SHAPE, LinearBackbone, point_pools


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def votes(problem: FeatureProblem, items: list[Tensor], queries: list[Tensor], config: MatchingConfig) -> Tensor:
    """Equation 1: (Q, N) of probabilities."""
    rows = []
    for query in queries:
        row = [torch.zeros(()) for _ in range(problem.support.n_way)]
        if config.distance == "l2":
            similarities = [-((query - item) ** 2).sum() for item in items]
        else:
            similarities = [config.cosine_scale * query @ item / (query.norm() * item.norm()) for item in items]
        total = sum(similarity.exp() for similarity in similarities)
        for label, similarity in zip(problem.y.tolist(), similarities, strict=True):
            row[label] = row[label] + similarity.exp() / total
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize("config", [MatchingConfig(), MatchingConfig(distance="cosine")], ids=lambda c: c.distance)
@pytest.mark.parametrize("k_shot", [1, 5])
def test_the_probability_of_a_class_is_the_attention_to_its_items(config: MatchingConfig, k_shot: int) -> None:
    learner = Matching(Flatten(), config)
    for problem in problems(k_shot=k_shot):
        logits = learner.classify(learner.adapt(problem.support), problem.queries[None])[0]
        expected = votes(problem, list(problem.x), list(problem.queries), config)
        torch.testing.assert_close(logits.exp(), expected)
        torch.testing.assert_close(logits.softmax(1), expected)


def lstm(weights: list[Tensor], x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    of_x, of_hidden, bias, more_bias = weights
    i, f, g, o = (of_x @ x + of_hidden @ hidden + bias + more_bias).chunk(4)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def contextual(context: FullContext, x: Tensor) -> list[Tensor]:
    """g(x_i, S) of the paper's appendix, the items in the order of their sums."""
    order = sorted(range(len(x)), key=lambda i: float(x[i].sum()))
    found = [item.clone() for item in x]
    for suffix, way in (("", order), ("_reverse", order[::-1])):
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        weights = [getattr(context.support, name + suffix) for name in names]
        hidden, cell = torch.zeros_like(x[0]), torch.zeros_like(x[0])
        for i in way:
            hidden, cell = lstm(weights, x[i], hidden, cell)
            found[i] = found[i] + hidden
    return found


def attended(context: FullContext, query: Tensor, items: list[Tensor]) -> Tensor:
    """f(x, S): equations 3 to 6."""
    weights = list(context.query.parameters())
    hidden, cell = torch.zeros_like(query), torch.zeros_like(query)
    for _ in range(context.n_steps):
        attention = torch.stack([hidden @ item for item in items]).softmax(0)
        read = torch.stack([a * item for a, item in zip(attention, items, strict=True)]).sum(0)
        output, cell = lstm(weights, torch.cat([query, read]), hidden, cell)
        hidden = output + query
    return hidden


def test_full_context_embeddings_are_those_of_the_appendix() -> None:
    torch.manual_seed(0)
    config = MatchingConfig(context_steps=3)
    context = FullContext(12, 3)
    learner = Matching(Flatten(), config, context)
    for problem in problems(k_shot=2):
        items = contextual(context, problem.x)
        queries = [attended(context, query, items) for query in problem.queries]
        logits = learner.classify(learner.adapt(problem.support), problem.queries[None])[0]
        torch.testing.assert_close(logits.exp(), votes(problem, items, queries, config))


def with_context() -> Matching:
    torch.manual_seed(0)
    config = MatchingConfig(distance="cosine", context_steps=2)
    return config.build(LinearBackbone(), Problem(train_shape=SHAPE, n_train_classes=None))


def test_with_full_context_the_order_of_the_support_set_does_not_matter() -> None:
    learner = with_context()
    episodes = point_pools()[0].load(range(2))
    x, y, queries = episodes.support_x.double(), episodes.support_y, episodes.query_x.double()
    order = torch.randperm(y.shape[1], generator=torch.Generator().manual_seed(1))
    logits = [
        learner.classify(learner.adapt(Support(x=x[:, rows], y=y[:, rows], n_way=SHAPE.n_way)), queries)
        for rows in (torch.arange(len(order)), order)
    ]
    torch.testing.assert_close(*logits)


def test_with_full_context_every_parameter_is_trained() -> None:
    torch.set_default_dtype(torch.float32)
    learner = with_context()
    learner.meta_loss(point_pools()[0].load(range(2))).sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in learner.parameters())


def test_far_items_still_vote_with_a_gradient() -> None:
    """In float32 their exponentials are zero, and the logarithm of the votes is not."""
    scores = torch.tensor([[[0.0, -300.0, -300.0]]], dtype=torch.float32, requires_grad=True)
    sums = class_log_sums(scores, torch.tensor([[0, 1, 1]]), 2)
    (of_far,) = torch.autograd.grad(sums[0, 0, 1], scores)
    assert sums[0, 0].tolist() == pytest.approx([0.0, -300 + torch.tensor(2.0).log().item()])
    assert of_far.tolist() == [[[0.0, 0.5, 0.5]]]
