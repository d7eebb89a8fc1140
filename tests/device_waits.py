"""Stands in for a device that nobody may wait for: refuses, on the CPU, what on a GPU would stop the host."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_NEED_VALUES = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique", "bincount")


class WaitError(AssertionError):
    """The host would have waited for the device here."""


class _OnDevice(TorchDispatchMode):
    """Refuses operations whose result, or its shape, needs numbers that the device has yet to compute."""

    def __init__(self, on_host: list[Tensor]) -> None:
        super().__init__()
        self._on_host = on_host

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool for index in args[1] or ()
        )
        if (name.startswith(_NEED_VALUES) or by_mask) and not any(args[0] is one for one in self._on_host):
            raise WaitError(f"{name} on a tensor of shape {tuple(args[0].shape)}")
        return func(*args, **(kwargs or {}))


@contextmanager
def as_on_a_device(*, on_host: list[Tensor]) -> Iterator[None]:
    """Inside, a tensor's values cannot be read, nor a NumPy array made a tensor, but for the tensors `on_host`."""

    def refuse_arrays(make: Any) -> Any:
        def checked(data: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(data, np.ndarray | list):
                raise WaitError("an array of the host went to the device")
            return make(data, *args, **kwargs)

        return checked

    with pytest.MonkeyPatch.context() as patch:
        for name in ("from_numpy", "as_tensor", "asarray", "tensor"):
            patch.setattr(torch, name, refuse_arrays(getattr(torch, name)))
        patch.setattr(Tensor, "numpy", _refuse_reading)
        with _OnDevice(on_host):
            yield


def _refuse_reading(tensor: Tensor, *args: Any, **kwargs: Any) -> None:
    raise WaitError(f"a tensor of shape {tuple(tensor.shape)} was read by the host")
