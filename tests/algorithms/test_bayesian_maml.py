"""Bayesian MAML against its equations: particle by particle, with gradients that autograd finds."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.algorithms.bayesian_maml import BayesianMAML, BayesianMAMLConfig, Particles
from kshot.algorithms.maths.stein import stein_direction
from kshot.backbones.contract import Flatten
from kshot.episodes.episode import EpisodeBatch
from tests.algorithms.random_features import FeatureProblem, problems


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def learner(config: BayesianMAMLConfig, n_way: int) -> BayesianMAML:
    torch.manual_seed(0)
    return BayesianMAML(Flatten(), config, Particles(config.particles, n_way, 12))


def directions(particles: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
    """phi(x_m) = 1/M sum_j [ k(x_j, x_m) grad_j + grad of k(x_j, x_m) by x_j ], one pair after the other."""
    flat = [particle.flatten() for particle in particles]
    squared = sorted(float(((a - b).detach() ** 2).sum()) for n, a in enumerate(flat) for b in flat[n + 1 :])
    bandwidth = squared[(len(squared) - 1) // 2] / math.log(len(flat) + 1)
    found = []
    for m in flat:
        total = torch.zeros_like(m)
        for j, gradient in zip(flat, gradients, strict=True):
            moved = j.clone().requires_grad_() if not j.requires_grad else j + 0
            kernel = torch.exp(-((moved - m) ** 2).sum() / bandwidth)
            (of_kernel,) = torch.autograd.grad(kernel, moved, create_graph=True)
            total = total + kernel * gradient.flatten() + of_kernel
        found.append((total / len(flat)).view_as(particles[0]))
    return found


def adapted(config: BayesianMAMLConfig, particles: list[Tensor], problem: FeatureProblem, n_steps: int) -> list[Tensor]:
    for _ in range(n_steps):
        gradients = []
        for particle in particles:
            logits = problem.x @ particle[:, :-1].T + particle[:, -1]
            log_density = -F.cross_entropy(logits, problem.y, reduction="sum")
            log_density = log_density - config.prior_precision / 2 * (particle**2).sum()
            (gradient,) = torch.autograd.grad(log_density, particle, create_graph=True)
            gradients.append(gradient)
        moves = directions(particles, gradients)
        rate = config.inner_lr / len(problem.y)
        particles = [particle + rate * move for particle, move in zip(particles, moves, strict=True)]
    return particles


@pytest.mark.parametrize("n_particles", [2, 4])
def test_answers_are_the_mean_probability_of_heads_that_took_steins_steps(n_particles: int) -> None:
    config = BayesianMAMLConfig(particles=n_particles, eval_inner_steps=3)
    for problem in problems(k_shot=2):
        one = learner(config, problem.support.n_way)
        found = one.classify(one.adapt(problem.support), problem.queries[None])[0]
        heads = adapted(config, [head + 0 for head in one.particles.heads], problem, 3)
        each = [(problem.queries @ head[:, :-1].T + head[:, -1]).softmax(1) for head in heads]
        torch.testing.assert_close(found.exp(), torch.stack(each).mean(0))


@pytest.mark.parametrize("inner_steps", [1, 2])
def test_the_meta_gradient_goes_through_the_steps(inner_steps: int) -> None:
    config = BayesianMAMLConfig(particles=3, inner_steps=inner_steps)
    for problem in problems(n_way=3, k_shot=2):
        one = learner(config, 3)
        episode = EpisodeBatch(
            support_x=problem.x[None],
            support_y=problem.y[None],
            query_x=problem.queries[None],
            query_y=problem.y[None],
            n_way=3,
            keys=torch.zeros(1, dtype=torch.int64),
        )
        (found,) = torch.autograd.grad(one.meta_loss(episode).sum(), one.particles.heads)
        heads = adapted(config, [head + 0 for head in one.particles.heads], problem, inner_steps)
        each = [(problem.queries @ head[:, :-1].T + head[:, -1]).softmax(1) for head in heads]
        loss = F.nll_loss(torch.stack(each).mean(0).log(), problem.y)
        (expected,) = torch.autograd.grad(loss, one.particles.heads)
        torch.testing.assert_close(found, expected)


def test_particles_find_the_mean_and_the_spread_of_a_normal_density() -> None:
    torch.manual_seed(0)
    particles = torch.randn(1, 50, 1) - 4
    for _ in range(1500):
        particles = particles + 0.2 * stein_direction(particles, -(particles - 2) / 0.25)
    assert particles.mean().item() == pytest.approx(2, abs=0.02)
    assert particles.std().item() == pytest.approx(0.5, abs=0.05)


def test_one_particle_is_plain_gradient_descent_and_equal_ones_are_no_fault() -> None:
    particle, gradient = torch.randn(2, 1, 3), torch.randn(2, 1, 3)
    torch.testing.assert_close(stein_direction(particle, gradient), gradient)
    same = particle.expand(2, 4, 3)
    assert stein_direction(same, gradient.expand(2, 4, 3)).isfinite().all()
