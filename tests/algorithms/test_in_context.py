"""The transformer that reads an episode, against its equations, token by token."""

import pytest
import torch
from torch import Tensor

from kshot.algorithms.in_context import InContext, InContextConfig, Layer, Reader
from kshot.backbones.contract import Flatten
from kshot.episodes.episode import Support
from tests.algorithms.random_features import problems

CONFIG = InContextConfig(layers=2, heads=3, width_per_head=2)


def in_context() -> InContext:
    torch.manual_seed(0)
    reader = Reader(12, CONFIG).double()
    with torch.no_grad():
        for layer in reader.layers:
            layer.of_same_class.normal_()
    return InContext(Flatten(), reader)


def normalised(norm: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    return (x - x.mean()) / (x.var(correction=0) + norm.eps).sqrt() * norm.weight + norm.bias


def through(layer: Layer, token: Tensor, examples: list[Tensor], same: list[bool]) -> Tensor:
    """One token through a layer: what each head reads of each example, then the map of the token alone."""
    own = normalised(layer.norm_of_tokens, token)
    seen = [normalised(layer.norm_of_tokens, example) for example in examples]
    read = []
    for head in range(3):
        rows = slice(2 * head, 2 * head + 2)
        query = layer.of_query.weight[rows] @ own
        scores = [
            query @ (layer.of_key.weight[rows] @ x) / 2**0.5 + layer.of_same_class[head] * alike
            for x, alike in zip(seen, same, strict=True)
        ]
        shares = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
        read.append(sum(share * (layer.of_value.weight[rows] @ x) for share, x in zip(shares, seen, strict=True)))
    x = token + layer.output.weight @ torch.cat(read) + layer.output.bias
    first, _, second = layer.map
    hidden = first.weight @ normalised(layer.norm_between, x) + first.bias
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    return x + second.weight @ hidden + second.bias


@pytest.mark.parametrize("k_shot", [1, 3])
def test_a_query_goes_to_the_class_whose_examples_it_resembles_after_reading_them(k_shot: int) -> None:
    learner = in_context()
    reader = learner.reader
    for problem in problems(k_shot=k_shot):
        found = learner.classify(learner.adapt(problem.support), problem.queries[None])[0]
        tokens = [reader.token.weight @ x + reader.token.bias for x in problem.x]
        queries = [reader.token.weight @ x + reader.token.bias for x in problem.queries]
        for layer in reader.layers:
            unknown = [False] * len(tokens)
            queries = [through(layer, query, tokens, unknown) for query in queries]
            tokens = [
                through(layer, token, tokens, [bool(label == other) for other in problem.y])
                for token, label in zip(tokens, problem.y, strict=True)
            ]
        classes = [
            torch.stack([token for token, label in zip(tokens, problem.y, strict=True) if label == n]).mean(0)
            for n in range(problem.support.n_way)
        ]
        rows = [[query @ centre / (query.norm() * centre.norm()) for centre in classes] for query in queries]
        torch.testing.assert_close(found, 10 * torch.stack([torch.stack(row) for row in rows]))


def test_more_classes_and_uneven_shots_than_in_training_can_be_asked() -> None:
    learner = in_context()
    x = torch.randn(1, 9, 12, dtype=torch.float64)
    y = torch.tensor([[0, 0, 0, 1, 2, 3, 4, 5, 6]])
    logits = learner.classify(learner.adapt(Support(x=x, y=y, n_way=7)), x)
    assert logits.shape == (1, 9, 7)
    assert logits.isfinite().all()
