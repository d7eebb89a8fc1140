"""Noise by key: normally distributed, and a function of key, stream and position alone."""

import numpy as np
import torch
from scipy.stats import kstest

from kshot.algorithms.maths.noise import fixed_keys, gaussian
from kshot.seeding import random_words, uniform

DOUBLE = torch.zeros(1, dtype=torch.float64)


def test_noise_is_that_of_box_and_muller_from_the_projects_own_uniform_numbers() -> None:
    keys = torch.tensor([3, -5, 2**62])
    found = gaussian(keys, 7, (2, 3), like=DOUBLE)
    for key, of_key in zip(keys, found, strict=True):
        of_stream = random_words(key, torch.tensor(7)).numpy().view(np.uint64)
        radius, angle = uniform(np.uint64(of_stream), np.arange(12)).reshape(2, 6)
        expected = np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)
        np.testing.assert_allclose(of_key.numpy(), expected.reshape(2, 3), rtol=1e-9, atol=1e-12)


def test_noise_is_normally_distributed_over_positions_and_over_keys() -> None:
    over_positions = gaussian(torch.tensor([1]), 1, (4000,), like=DOUBLE)[0]
    over_keys = gaussian(torch.arange(4000), 1, (1,), like=DOUBLE)[:, 0]
    for sample in (over_positions, over_keys):
        assert kstest(sample.numpy(), "norm").pvalue > 0.01


def test_other_keys_and_other_streams_draw_other_noise_and_equal_ones_the_same() -> None:
    keys = torch.tensor([1, 2, 1])
    first, other = (gaussian(keys, stream, (5,), like=DOUBLE) for stream in (1, 2))
    assert torch.equal(first[0], first[2])
    assert not torch.isclose(first[0], first[1]).any()
    assert not torch.isclose(first, other).any()
    assert torch.equal(gaussian(keys[1:2], 1, (5,), like=DOUBLE)[0], first[1])


def test_every_answer_has_the_same_key() -> None:
    assert fixed_keys(torch.zeros(3, 2, 5)).tolist() == [0, 0, 0]
