"""How much memory a training step will need, before it is taken.

Nearly all of it is what autograd keeps of the forward pass, which grows with the items. So the losses of two small
problems are computed, what autograd keeps of each is counted, and the line through both is followed to the real size.
Where blocks compute their activations again, that is what they are given, and what the largest one keeps in its turn.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from kshot.backbones.layers.recompute import MEASURING


def kept_bytes(loss: Callable[[], Tensor]) -> int:
    """The most bytes that autograd keeps at the same time for the gradient of what `loss` gives.

    Tensors that share memory count once.
    """
    kept, largest = _Kept(), 0

    def block(run: Callable[..., Tensor], inputs: tuple[Any, ...]) -> Tensor:
        nonlocal largest
        given = [one for one in inputs if isinstance(one, Tensor)]
        for tensor in given:
            kept.keep(tensor)
        inside = _Kept(without=given)
        with torch.autograd.graph.saved_tensors_hooks(inside.keep, _as_it_is):
            result = run(*inputs)
        largest = max(largest, inside.most)
        return result

    token = MEASURING.set(block)
    try:
        with torch.autograd.graph.saved_tensors_hooks(kept.keep, _as_it_is):
            result = loss()
    finally:
        MEASURING.reset(token)
    del result
    return kept.most + largest


def followed(loss_of: Callable[[int], Tensor], size: int) -> int:
    """About how much autograd keeps of the loss of a problem of `size`, on a line through those of 2 and of 3."""
    of_two, of_three = kept_bytes(lambda: loss_of(2)), kept_bytes(lambda: loss_of(3))
    return of_two + (of_three - of_two) * (size - 2)


class _Kept:
    """Counts the bytes of tensors while they live, but of those of `without`."""

    def __init__(self, without: Iterable[Tensor] = ()) -> None:
        self.most = 0
        self._alive: dict[int, int] = {}
        self._without = {tensor.untyped_storage().data_ptr() for tensor in without}

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._alive and storage.data_ptr() not in self._without:
            self._alive[storage.data_ptr()] = storage.nbytes()
            weakref.finalize(storage, self._alive.pop, storage.data_ptr(), None)
            self.most = max(self.most, sum(self._alive.values()))
        return tensor.detach()  # the result of an operation that keeps it would keep itself alive by its graph


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
