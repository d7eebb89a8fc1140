import numpy as np
import torch

from kshot.seeding import generator, random_bits, random_words, stream_key, uniform


def test_a_draw_depends_on_its_counters_alone() -> None:
    key = stream_key(1, "a")
    together = random_bits(key, np.arange(100)[:, None], np.arange(7))
    alone = random_bits(key, 42, 3)
    assert together[42, 3] == alone


def test_bits_of_a_stream_are_pinned() -> None:
    assert random_bits(stream_key(1, "task_pool"), np.arange(2)).tolist() == [2813475336164019173, 15865186416440966699]


def test_a_tensor_of_counters_gives_the_same_words() -> None:
    key, counters = stream_key(4, "x"), np.arange(-3, 60)
    words = random_words(int(key.view(np.int64)), torch.from_numpy(counters)[:, None], torch.arange(5))
    assert np.array_equal(words.numpy().view(np.uint64), random_bits(key, counters[:, None], np.arange(5)))


def test_seeds_and_names_give_unrelated_streams() -> None:
    keys = {int(stream_key(seed, *names)) for seed in range(50) for names in [("a",), ("b",), ("a", "b"), ("a", 1)]}
    assert len(keys) == 200


def test_uniform_numbers_are_inside_the_unit_interval_and_spread_evenly() -> None:
    values = uniform(stream_key(5, "x"), np.arange(200_000))
    assert 0 < values.min() and values.max() < 1
    counts = np.histogram(values, bins=20, range=(0, 1))[0]
    assert np.abs(counts - 10_000).max() < 500  # five standard deviations


def test_neighbouring_counters_are_not_correlated() -> None:
    key = stream_key(9, "x")
    grid = uniform(key, np.arange(1000)[:, None], np.arange(200))
    assert abs(np.corrcoef(grid[:-1].ravel(), grid[1:].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(grid[:, :-1].ravel(), grid[:, 1:].ravel())[0, 1]) < 0.01


def test_sequential_generators_repeat() -> None:
    assert generator(3, "x").integers(1000) == generator(3, "x").integers(1000)
