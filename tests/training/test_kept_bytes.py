"""What autograd keeps, counted."""

import weakref

import torch
from torch import nn

from kshot.training.memory import followed, kept_bytes


def test_what_autograd_keeps_is_counted_once_and_grows_with_the_items() -> None:
    network = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Sigmoid())
    of_weights = 100 * 100 * 4

    def kept(n: int) -> int:
        items = torch.zeros(n, 100)
        return kept_bytes(lambda: network(items).sum())

    assert 2 * n_bytes(500) <= kept(500) <= 2 * n_bytes(500) + of_weights
    expected = followed(lambda n: network(torch.zeros(n, 100)).sum(), 900)
    assert abs(expected - kept(900)) <= of_weights


def n_bytes(n: int) -> int:
    return n * 100 * 4


def test_what_is_freed_on_the_way_is_not_counted_twice() -> None:
    weight = torch.ones(100, 100, requires_grad=True)

    def two_after_another() -> torch.Tensor:
        losses = []
        for _ in range(2):
            (gradient,) = torch.autograd.grad((torch.ones(1000, 100) @ weight).sigmoid().sum(), weight)
            losses.append(gradient.sum())
        return torch.stack(losses).sum()

    assert kept_bytes(two_after_another) < 3 * 1000 * 100 * 4


def test_nothing_is_held_after_counting() -> None:
    weight = torch.ones(100, 100, requires_grad=True)
    alive = []

    def loss() -> torch.Tensor:
        kept_by_its_own_result = (torch.ones(1000, 100) @ weight).sigmoid()
        alive.append(weakref.ref(kept_by_its_own_result.untyped_storage()))
        return kept_by_its_own_result.sum()

    kept_bytes(loss)
    assert alive[0]() is None
