"""higher 0.2.1, as in its examples/maml-omniglot.py."""

from collections.abc import Iterator

import higher
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.measure import Part, Request, serve
from bench.plain import BATCHES_AT_ONCE, Conv4, numpy_episodes
from bench.workloads import Workload

Batches = Iterator[tuple[Tensor, ...]]


def prepare(request: Request) -> list[Part]:
    workload, shape = request.workload, request.workload.shapes[0]
    n_episodes = 16 if workload.kind == "evaluate" else workload.episodes
    batches = numpy_episodes(request.images, shape, n_episodes)
    if workload.kind == "sample":
        return [
            Part(
                name=str(shape),
                step=lambda: [next(batches) for _ in range(BATCHES_AT_ONCE)],  # one call draws for the other nine
                episodes=BATCHES_AT_ONCE * n_episodes,
            )
        ]
    network = Conv4(request.width, shape.n_way)
    network.train()
    step = _evaluation_step if workload.kind == "evaluate" else _training_step(workload)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    return [
        Part(name=str(shape), step=lambda: step(network, optimizer, batches, workload.inner_steps), episodes=n_episodes)
    ]


def _training_step(workload: Workload):
    return {"maml": _second_order_step, "fomaml": _first_order_step}[workload.algorithm]


def _second_order_step(network: Conv4, optimizer: torch.optim.Optimizer, batches: Batches, inner_steps: int) -> None:
    inner = torch.optim.SGD(network.parameters(), lr=0.4)
    optimizer.zero_grad()
    for support_x, support_y, query_x, query_y in zip(*next(batches), strict=True):
        with higher.innerloop_ctx(network, inner, copy_initial_weights=False) as (fast, differentiable):
            for _ in range(inner_steps):
                differentiable.step(F.cross_entropy(fast(support_x), support_y))
            logits = fast(query_x)
            (logits.argmax(dim=1) == query_y).sum().item()
            F.cross_entropy(logits, query_y).backward()
    optimizer.step()


def _first_order_step(network: Conv4, optimizer: torch.optim.Optimizer, batches: Batches, inner_steps: int) -> None:
    """Without higher gradients the fast weights are leaves; theirs are the first-order gradients."""
    inner = torch.optim.SGD(network.parameters(), lr=0.4)
    optimizer.zero_grad()
    for support_x, support_y, query_x, query_y in zip(*next(batches), strict=True):
        with higher.innerloop_ctx(network, inner, track_higher_grads=False) as (fast, differentiable):
            for _ in range(inner_steps):
                differentiable.step(F.cross_entropy(fast(support_x), support_y))
            logits = fast(query_x)
            (logits.argmax(dim=1) == query_y).sum().item()
            gradients = torch.autograd.grad(F.cross_entropy(logits, query_y), list(fast.parameters()))
            for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    optimizer.step()


def _evaluation_step(network: Conv4, optimizer: torch.optim.Optimizer, batches: Batches, inner_steps: int) -> None:
    inner = torch.optim.SGD(network.parameters(), lr=0.4)
    for support_x, support_y, query_x, query_y in zip(*next(batches), strict=True):
        with higher.innerloop_ctx(network, inner, track_higher_grads=False) as (fast, differentiable):
            for _ in range(inner_steps):
                differentiable.step(F.cross_entropy(fast(support_x), support_y))
            (fast(query_x).detach().argmax(dim=1) == query_y).sum().item()


if __name__ == "__main__":
    serve(prepare)
