"""FEAT against the paper's equations, item by item."""

import pytest
import torch
from torch import Tensor

from kshot.algorithms.feat import FEAT, FEATConfig, SetAttention
from kshot.backbones.contract import Flatten
from kshot.episodes.episode import EpisodeBatch
from tests.algorithms.random_features import FeatureProblem, problems


def feat(config: FEATConfig) -> FEAT:
    torch.manual_seed(0)
    return FEAT(Flatten(), config, SetAttention(12).double())


def adapted(attention: SetAttention, items: list[Tensor]) -> list[Tensor]:
    """Each item of a set, adapted to the others by the transformer of section 4.2."""
    found = []
    for item in items:
        query = attention.of_query.weight @ item
        similar = torch.stack([query @ (attention.of_key.weight @ other) / len(item) ** 0.5 for other in items])
        read = torch.zeros_like(item)
        for share, other in zip(similar.exp() / similar.exp().sum(), items, strict=True):
            read = read + share * (attention.of_value.weight @ other)
        x = item + attention.output.weight @ read + attention.output.bias
        x = (x - x.mean()) / (x.var(correction=0) + attention.norm.eps).sqrt()
        found.append(x * attention.norm.weight + attention.norm.bias)
    return found


def class_means(problem: FeatureProblem) -> list[Tensor]:
    return [problem.x[problem.y == n].mean(0) for n in range(problem.support.n_way)]


def distances(items: Tensor, centres: list[Tensor]) -> Tensor:
    return torch.stack([torch.stack([((item - centre) ** 2).sum() for centre in centres]) for item in items])


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([-row.softmax(0)[label].log() for row, label in zip(logits, labels, strict=True)]).mean()


@pytest.mark.parametrize("k_shot", [1, 5])
def test_logits_are_minus_distances_to_adapted_prototypes_by_the_temperature(k_shot: int) -> None:
    learner = feat(FEATConfig(temperature=4.0))
    for problem in problems(k_shot=k_shot):
        logits = learner.classify(learner.adapt(problem.support), problem.queries[None])[0]
        centres = adapted(learner.attention, class_means(problem))
        torch.testing.assert_close(logits, -distances(problem.queries, centres) / 4.0)


@pytest.mark.parametrize("contrast", [0.0, 0.5])
def test_the_loss_is_that_of_the_queries_and_the_contrast_of_all_items(contrast: float) -> None:
    learner = feat(FEATConfig(contrast=contrast, temperature=4.0))
    for problem in problems(n_way=3, k_shot=2):
        queries = -distances(problem.queries, adapted(learner.attention, class_means(problem))) / 4.0
        everything, labels = torch.cat([problem.x, problem.queries]), torch.cat([problem.y, problem.y])
        sets = [adapted(learner.attention, list(everything[labels == n])) for n in range(3)]
        centres = [torch.stack(items).mean(0) for items in sets]
        expected = cross_entropy(queries, problem.y)
        expected = expected + contrast * cross_entropy(-distances(everything, centres) / 4.0, labels)
        order = torch.randperm(len(problem.y), generator=torch.Generator().manual_seed(2))
        episode = EpisodeBatch(
            support_x=problem.x[None],
            support_y=problem.y[None],
            query_x=problem.queries[None, order],
            query_y=problem.y[None, order],
            n_way=3,
            keys=torch.zeros(1, dtype=torch.int64),
        )
        torch.testing.assert_close(learner.meta_loss(episode)[0], expected)
