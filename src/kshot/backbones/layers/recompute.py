"""Activations that are computed again in the backward pass, block by block, instead of being kept until then.

Chen, Xu, Zhang and Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016. What a block is given is kept, and
from that its gradient needs a second forward pass of the block. The results are the same to the bit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from kshot.backbones.contract import draws
from kshot.backbones.layers.norm import RECORDING

Run = Callable[..., Tensor]

_wanted = False

MEASURING: ContextVar[Callable[[Run, tuple[Any, ...]], Tensor] | None] = ContextVar("measuring", default=None)
"""Runs a block on its inputs in place of what `recomputed` does, where somebody counts what a block would keep."""


def use_recomputation(wanted: bool) -> None:
    """Let the blocks of this process's backbones compute their activations again in training."""
    global _wanted
    _wanted = wanted


def uses_recomputation() -> bool:
    return _wanted


@contextmanager
def recomputation(wanted: bool) -> Iterator[None]:
    """The same while the context is open."""
    before = uses_recomputation()
    use_recomputation(wanted)
    try:
        yield
    finally:
        use_recomputation(before)


def recomputed(owner: nn.Module, run: Run, *inputs: Any, **named: Any) -> Tensor:
    """run(*inputs, **named), computed again in the backward pass where this process wants that and `owner` trains.

    `owner` is the module whose tensors `run` reads. The second time it reads the same ones as the first, also where
    they were lent to the module for one call, and draws the same noise.
    """
    if not (_wanted and owner.training and torch.is_grad_enabled()) or RECORDING.get() is not None:
        return run(*inputs, **named)
    measure = MEASURING.get()
    if measure is not None:
        return measure(partial(run, **named), inputs)
    part = _Part(owner, run)
    tensors = {**dict(part.named_parameters()), **dict(part.named_buffers())}
    context, again = copy_context(), _Again(draws())

    def in_context(*given: Any, **by_name: Any) -> Any:
        return context.run(functional_call, part, tensors, given, by_name)

    result: Tensor = checkpoint(
        in_context,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), again),
        **named,
    )
    return result


@contextmanager
def blocks_recomputed(network: nn.Module) -> Iterator[None]:
    """Each of `blocks` of the network goes through `recomputed` while the context is open."""
    held = list(blocks(network)) if _wanted and network.training else []
    for block in held:
        block.__dict__["forward"] = partial(recomputed, block, block.forward)
    try:
        yield
    finally:
        for block in held:
            del block.__dict__["forward"]


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The parts that a network is a sequence of: what stands in its lists, lists in lists taken apart.

    A part that is a single layer is no block: its input is all that its gradient needs.
    """
    for child in network.children():
        if isinstance(network, nn.Sequential | nn.ModuleList) and not isinstance(child, nn.Sequential):
            if any(True for _ in child.children()):
                yield child
        else:
            yield from blocks(child)


class _Part(nn.Module):
    """`run` as the forward pass of a module that has the tensors of `owner`."""

    def __init__(self, owner: nn.Module, run: Run) -> None:
        super().__init__()
        self.owner = owner
        self.run = partial(run)  # not a part of this module: tensors under two names would not all be given back

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        return self.run(*inputs, **named)


class _Again:
    """While it is open, the generator begins where it stood before the first run; it may be opened several times."""

    def __init__(self, generator: torch.Generator | None) -> None:
        self._generator = generator
        self._start = None if generator is None else generator.get_state()

    def __enter__(self) -> None:
        if self._generator is not None and self._start is not None:
            self._now = self._generator.get_state()
            self._generator.set_state(self._start)

    def __exit__(self, *_: object) -> None:
        if self._generator is not None:
            self._generator.set_state(self._now)
