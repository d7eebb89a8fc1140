"""The hallucinator against its paper, one made-up feature at a time."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.algorithms.hallucinator import Generator, Hallucinator, HallucinatorConfig
from kshot.algorithms.maths.noise import gaussian
from kshot.backbones.contract import Flatten
from kshot.episodes.episode import EpisodeBatch
from tests.algorithms.random_features import FeatureProblem, problems

CONFIG = HallucinatorConfig(generated=3, noise=5)


def hallucinator() -> Hallucinator:
    torch.manual_seed(0)
    return Hallucinator(Flatten(), CONFIG, Generator(12, 5).double())


def made_up(generator: Generator, seed: Tensor, noise: Tensor) -> Tensor:
    """The generator of the paper, three layers with ReLU between them, on a seed and a noise vector."""
    x = torch.cat([seed, noise])
    first, _, second, _, last = generator.layers
    x = torch.relu(first.weight @ x + first.bias)
    x = torch.relu(second.weight @ x + second.bias)
    return seed + last.weight @ x + last.bias


def centres(learner: Hallucinator, problem: FeatureProblem, key: int) -> Tensor:
    """Class means of the support set and of what is made of it."""
    noise = gaussian(torch.tensor([key]), 23, (3, 5), like=problem.x)[0]
    found = []
    for n in range(problem.support.n_way):
        own = list(problem.x[problem.y == n])
        more = [made_up(learner.generator, seed, z) for seed in own for z in noise]
        found.append(torch.stack([*own, *more]).mean(0))
    return torch.stack(found)


def minus_distances(problem: FeatureProblem, means: Tensor) -> Tensor:
    return -torch.stack([((query - means) ** 2).sum(1) for query in problem.queries])


def episode(problem: FeatureProblem, key: int) -> EpisodeBatch:
    return EpisodeBatch(
        support_x=problem.x[None],
        support_y=problem.y[None],
        query_x=problem.queries[None],
        query_y=problem.y[None],
        n_way=4,
        keys=torch.tensor([key]),
    )


@pytest.mark.parametrize("k_shot", [1, 5])
def test_prototypes_are_the_means_of_real_and_made_up_features(k_shot: int) -> None:
    learner = hallucinator()
    for problem in problems(k_shot=k_shot):
        logits = learner.classify(learner.adapt(problem.support), problem.queries[None])[0]
        torch.testing.assert_close(logits, minus_distances(problem, centres(learner, problem, key=0)))


def test_the_loss_and_its_gradients_are_those_of_the_queries_through_the_generator() -> None:
    learner = hallucinator()
    for key, problem in enumerate(problems(k_shot=2)):
        loss = learner.meta_loss(episode(problem, key)).sum()
        expected = F.cross_entropy(minus_distances(problem, centres(learner, problem, key)), problem.y)
        torch.testing.assert_close(loss, expected)
        parameters = list(learner.parameters())
        found, by_hand = (torch.autograd.grad(one, parameters) for one in (loss, expected))
        torch.testing.assert_close(found, by_hand)


def test_noise_is_of_the_episodes_key_in_training_and_the_same_in_every_answer() -> None:
    learner = hallucinator()
    problem = next(problems(k_shot=1))
    losses = [float(learner.meta_loss(episode(problem, key)).detach()) for key in (1, 2, 1)]
    assert losses[0] == losses[2] != losses[1]
    support = problem.support
    keyed = type(support)(x=support.x, y=support.y, n_way=4, keys=torch.tensor([9]))
    assert torch.equal(learner.adapt(support), learner.adapt(keyed))


def test_at_first_the_generator_nearly_copies_its_seed() -> None:
    problem = next(problems())
    seeds, noise = problem.x[None], gaussian(torch.tensor([1]), 1, (3, 5), like=problem.x)
    with torch.no_grad():
        made = hallucinator().generator(seeds, noise)
    assert made.shape == (1, 3 * seeds.shape[1], 12)
    assert (
        0 < float((made - seeds.repeat_interleave(3, dim=1)).norm(dim=2).max()) < 0.1 * float(seeds.norm(dim=2).min())
    )


def test_on_features_the_generator_is_the_learners_own() -> None:
    learner = hallucinator()
    assert learner.on_features().generator is learner.generator
