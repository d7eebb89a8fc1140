"""VERSA against the paper's equations, weight by weight."""

import math

import pytest
import torch
from torch import Tensor, nn

from kshot.algorithms.maths.mixtures import log_mean_probability
from kshot.algorithms.maths.noise import standard_normal
from kshot.algorithms.versa import VERSA, Amortisation, VERSAConfig
from kshot.backbones.contract import Flatten
from kshot.episodes.episode import EpisodeBatch, Support
from tests.algorithms.random_features import FeatureProblem, problems

N_FEATURES = 12


def versa(samples: int) -> VERSA:
    torch.manual_seed(0)
    return VERSA(Flatten(), VERSAConfig(samples=samples), Amortisation(N_FEATURES, -1.0).double())


def through(network: nn.Sequential, x: Tensor) -> Tensor:
    for layer in (network[0], network[2]):
        x = layer.weight @ x + layer.bias
        x = torch.where(x > 0, x, x.exp() - 1)
    out = network[4].weight @ x
    return out if network[4].bias is None else out + network[4].bias


def probabilities(learner: VERSA, problem: FeatureProblem, key: int) -> Tensor:
    """(Q, N): section 3 with the sum over samples written out; the noise of a class is that of its rank."""
    n_way, n_samples = problem.support.n_way, learner.config.samples
    means = [problem.x[problem.y == n].mean(0) for n in range(n_way)]
    sums = [float(mean.sum()) for mean in means]
    noise = standard_normal(torch.tensor([key]), (n_samples, n_way, N_FEATURES + 1), like=problem.x)[0]
    network, rows = learner.amortisation, []
    for query in problem.queries:
        total = torch.zeros(n_way, dtype=torch.float64)
        for sample in range(n_samples):
            logits = []
            for mean, own in zip(means, sums, strict=True):
                draw = noise[sample, sum(other < own for other in sums)]
                weight_std = (through(network.weight_log_variance, mean) / 2).exp()
                weight = through(network.weight_mean, mean) + weight_std * draw[:-1]
                bias_std = (through(network.bias_log_variance, mean) / 2).exp()
                bias = through(network.bias_mean, mean) + bias_std * draw[-1:]
                logits.append(weight @ query + bias[0])
            total = total + torch.stack(logits).softmax(0)
        rows.append(total / n_samples)
    return torch.stack(rows)


@pytest.mark.parametrize("k_shot", [1, 5])
@pytest.mark.parametrize("samples", [1, 4])
def test_logits_are_the_logarithms_of_the_mean_probability_over_drawn_classifiers(samples: int, k_shot: int) -> None:
    learner = versa(samples)
    for problem in problems(k_shot=k_shot):
        logits = learner.classify(learner.adapt(problem.support), problem.queries[None])[0]
        torch.testing.assert_close(logits.exp(), probabilities(learner, problem, key=0))


def test_the_loss_is_minus_the_log_of_the_mean_probability_with_the_noise_of_the_episodes_key() -> None:
    learner = versa(3)
    for problem in problems(k_shot=2):
        for key in (5, 6):
            right = probabilities(learner, problem, key)[torch.arange(len(problem.y)), problem.y]
            episode = EpisodeBatch(
                support_x=problem.x[None],
                support_y=problem.y[None],
                query_x=problem.queries[None],
                query_y=problem.y[None],
                n_way=problem.support.n_way,
                keys=torch.tensor([key]),
            )
            torch.testing.assert_close(learner.meta_loss(episode)[0], -right.log().mean())


def test_relabelling_the_classes_relabels_the_answers_to_the_noise() -> None:
    learner, permutation = versa(2), torch.tensor([2, 0, 3, 1])
    for problem in problems():
        before = learner.classify(learner.adapt(problem.support), problem.queries[None])
        relabelled = Support(x=problem.x[None], y=permutation[problem.y][None], n_way=4)
        after = learner.classify(learner.adapt(relabelled), problem.queries[None])
        torch.testing.assert_close(after[:, :, permutation], before)


def test_wider_posteriors_make_answers_less_sure() -> None:
    confidence = []
    for log_variance in (-20.0, 0.0, 3.0):
        torch.manual_seed(0)
        network = Amortisation(N_FEATURES, log_variance).double()
        with torch.no_grad():
            network.weight_mean[-1].weight.copy_(8 * torch.eye(N_FEATURES))
        learner = VERSA(Flatten(), VERSAConfig(samples=50), network)
        problem = next(problems())
        logits = learner.classify(learner.adapt(problem.support), problem.queries[None])
        confidence.append(float(logits.detach().exp().amax(2).mean()))
    assert confidence[0] > confidence[1] > confidence[2]


def test_the_mean_of_probabilities_is_not_that_of_logits() -> None:
    logits = [torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[3.0, -1.0]]])]
    expected = sum(one.softmax(2) for one in logits) / 2
    torch.testing.assert_close(log_mean_probability(logits).exp(), expected)


def test_the_noise_is_standard_normal_and_a_function_of_the_key() -> None:
    keys = torch.tensor([7, -3, 2**62])
    noise = standard_normal(keys, (100, 200), like=torch.zeros((), dtype=torch.float64))
    for one in noise:
        assert float(one.mean()) == pytest.approx(0, abs=5 / math.sqrt(one.numel()))
        assert float(one.square().mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / one.numel()))
        assert float((one**4).mean()) == pytest.approx(3, abs=5 * math.sqrt(96 / one.numel()))
    flat = noise.flatten(1)
    correlations = torch.corrcoef(torch.cat([flat, flat.roll(1, 1)]))
    assert float((correlations - torch.eye(6)).abs().max()) < 5 / math.sqrt(flat.shape[1])
    for i in range(3):
        assert torch.equal(standard_normal(keys[i : i + 1], (100, 200), like=noise)[0], noise[i])
