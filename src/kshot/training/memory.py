"""How much memory a training step will need, before it is taken.

Nearly all of it is what autograd keeps of the forward pass, which grows with the items. So the losses of two small
problems are computed, what autograd keeps of each is counted, and the line through both is followed to the real size.
"""

import weakref
from collections.abc import Callable

import torch
from torch import Tensor


def kept_bytes(loss: Callable[[], Tensor]) -> int:
    """The most bytes that autograd keeps at the same time for the gradient of what `loss` gives.

    Tensors that share memory count once.
    """
    alive: dict[int, int] = {}
    most = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal most
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in alive:
            alive[storage.data_ptr()] = storage.nbytes()
            weakref.finalize(storage, alive.pop, storage.data_ptr(), None)
            most = max(most, sum(alive.values()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = loss()
    del result
    return most


def followed(loss_of: Callable[[int], Tensor], size: int) -> int:
    """About how much autograd keeps of the loss of a problem of `size`, on a line through those of 2 and of 3."""
    of_two, of_three = kept_bytes(lambda: loss_of(2)), kept_bytes(lambda: loss_of(3))
    return of_two + (of_three - of_two) * (size - 2)
