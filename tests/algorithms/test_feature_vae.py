"""The feature VAE against its equations, one feature at a time."""

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence
from torch.nn import functional as F

from kshot.algorithms.feature_vae import ConditionalVAE, FeatureVAE, FeatureVAEConfig
from kshot.algorithms.maths.noise import gaussian
from kshot.backbones.contract import Flatten
from kshot.episodes.episode import EpisodeBatch
from tests.algorithms.random_features import FeatureProblem, problems

CONFIG = FeatureVAEConfig(generated=3, latent=5, beta=0.7)


def feature_vae() -> FeatureVAE:
    torch.manual_seed(0)
    return FeatureVAE(Flatten(), CONFIG, ConditionalVAE(12, 5).double())


def decoded(vae: ConditionalVAE, latent: Tensor, mean: Tensor) -> Tensor:
    first, _, last = vae.decoder
    return mean + last.weight @ torch.relu(first.weight @ torch.cat([latent, mean]) + first.bias) + last.bias


def encoded(vae: ConditionalVAE, feature: Tensor, mean: Tensor) -> Normal:
    first, _, last = vae.encoder
    out = last.weight @ torch.relu(first.weight @ torch.cat([feature, mean]) + first.bias) + last.bias
    return Normal(out[:5], torch.exp(out[5:]).sqrt())


def class_mean(problem: FeatureProblem, n: int) -> Tensor:
    return problem.x[problem.y == n].mean(0)


def logits(vae: ConditionalVAE, problem: FeatureProblem, key: int) -> Tensor:
    noise = gaussian(torch.tensor([key]), 29, (3, 5), like=problem.x)[0]
    means = []
    for n in range(problem.support.n_way):
        more = [decoded(vae, z, class_mean(problem, n)) for z in noise]
        means.append(torch.stack([*problem.x[problem.y == n], *more]).mean(0))
    return -torch.stack([torch.stack([((query - mean) ** 2).sum() for mean in means]) for query in problem.queries])


def negative_bound(vae: ConditionalVAE, problem: FeatureProblem, key: int) -> Tensor:
    """Minus the evidence bound of the queries' features given their class means, by the distributions themselves."""
    noise = gaussian(torch.tensor([key]), 31, (len(problem.queries), 5), like=problem.x)[0]
    constant = 12 / 2 * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
    bounds = []
    for query, label, eps in zip(problem.queries, problem.y, noise, strict=True):
        mean = class_mean(problem, int(label))
        posterior = encoded(vae, query, mean)
        latent = posterior.mean + eps * posterior.stddev
        likelihood = MultivariateNormal(decoded(vae, latent, mean), torch.eye(12, dtype=torch.float64))
        prior = Normal(torch.zeros(5, dtype=torch.float64), 1.0)
        bounds.append(likelihood.log_prob(query) + constant - kl_divergence(posterior, prior).sum())
    return -torch.stack(bounds).mean()


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
def test_prototypes_are_the_means_of_real_and_sampled_features(k_shot: int) -> None:
    learner = feature_vae()
    for problem in problems(k_shot=k_shot):
        found = learner.classify(learner.adapt(problem.support), problem.queries[None])[0]
        torch.testing.assert_close(found, logits(learner.vae, problem, key=0))


def test_the_loss_is_that_of_the_queries_and_beta_times_the_negative_bound() -> None:
    learner = feature_vae()
    for key, problem in enumerate(problems(k_shot=2)):
        loss = learner.meta_loss(episode(problem, key)).sum()
        of_queries = F.cross_entropy(logits(learner.vae, problem, key), problem.y)
        expected = of_queries + 0.7 * negative_bound(learner.vae, problem, key)
        torch.testing.assert_close(loss, expected)
        parameters = list(learner.parameters())
        found, by_hand = (torch.autograd.grad(one, parameters) for one in (loss, expected))
        torch.testing.assert_close(found, by_hand)


def test_the_bound_has_no_say_in_the_features() -> None:
    learner = feature_vae()
    for key, problem in enumerate(problems(k_shot=2)):
        x, queries = problem.x.clone().requires_grad_(), problem.queries.clone().requires_grad_()
        given = FeatureProblem(x=x, y=problem.y, queries=queries)
        found = torch.autograd.grad(learner.meta_loss(episode(given, key)).sum(), [x, queries])
        of_queries = F.cross_entropy(logits(learner.vae, given, key), problem.y)
        torch.testing.assert_close(found, torch.autograd.grad(of_queries, [x, queries]))


def test_noise_is_of_the_episodes_key_in_training_and_the_same_in_every_answer() -> None:
    learner = feature_vae()
    problem = next(problems(k_shot=1))
    losses = [float(learner.meta_loss(episode(problem, key)).detach()) for key in (1, 2, 1)]
    assert losses[0] == losses[2] != losses[1]
    support = problem.support
    keyed = type(support)(x=support.x, y=support.y, n_way=4, keys=torch.tensor([9]))
    assert torch.equal(learner.adapt(support), learner.adapt(keyed))


def test_what_is_sampled_spreads_as_features_do_about_the_mean_of_their_class() -> None:
    """Features that lie along one direction about the means: after a fit to the bound, so does what is sampled."""
    torch.manual_seed(0)
    vae = ConditionalVAE(6, 2)
    draw = torch.Generator().manual_seed(1)
    means = torch.randn(64, 1, 6, generator=draw).expand(-1, 8, -1)
    direction = torch.tensor([0.0, 0.0, 5.0, 0.0, 0.0, 0.0])
    features = means + torch.randn(64, 8, 1, generator=draw) * direction
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.01)
    for _ in range(400):
        optimizer.zero_grad()
        vae.negative_bound(features, means, torch.randn(64, 8, 2, generator=draw)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        sampled = vae.decoded(torch.randn(64, 8, 2, generator=draw), means) - means
    spread = sampled.flatten(0, 1).std(0)
    assert 3 < float(spread[2]) < 7
    assert float(spread[[0, 1, 3, 4, 5]].max()) < 1
