"""Stands in for a device that nobody may wait for: refuses, on the CPU, what on a GPU would stop the host."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_NEED_VALUES = {
    "_local_scalar_dense",
    "_unique2",
    "allclose",
    "bincount",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "unique_dim",
}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
_MAKE_TENSORS = ("from_numpy", "as_tensor", "asarray", "tensor")
_READ_TENSORS = ("cpu", "numpy", "tolist", "new_tensor")


class WaitError(AssertionError):
    """The host would have waited for the device here."""


class _OnDevice(TorchDispatchMode):
    """Refuses operations whose result, or its shape, needs numbers that the device has yet to compute."""

    def __init__(self, on_host: list[Tensor]) -> None:
        super().__init__()
        self._on_host = on_host

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in _INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1])
        by_lengths = name == "repeat_interleave" and func._overloadname == "Tensor"
        if (name in _NEED_VALUES or by_mask or by_lengths) and not any(args[0] is one for one in self._on_host):
            raise WaitError(f"{name} on a tensor of shape {tuple(args[0].shape)}")
        return func(*args, **(kwargs or {}))


@contextmanager
def as_on_a_device(*, on_host: list[Tensor]) -> Iterator[None]:
    """Inside, a tensor's values cannot be read nor made from the host's numbers, but for the tensors `on_host`."""

    def refuse_data(make: Any) -> Any:
        def checked(data: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(data, Tensor):
                raise WaitError("numbers of the host went to the device")
            return make(data, *args, **kwargs)

        return checked

    def refuse_host(move: Any) -> Any:
        def checked(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if "cpu" in (*args, *kwargs.values()):
                _refuse_reading(tensor)
            return move(tensor, *args, **kwargs)

        return checked

    def refuse_lists(index: Any) -> Any:
        def checked(tensor: Tensor, key: Any) -> Any:
            if isinstance(key, list) or (isinstance(key, tuple) and any(isinstance(one, list) for one in key)):
                raise WaitError("a list of the host went to the device")
            return index(tensor, key)

        return checked

    with pytest.MonkeyPatch.context() as patch:
        for name in _MAKE_TENSORS:
            patch.setattr(torch, name, refuse_data(getattr(torch, name)))
        for name in _READ_TENSORS:
            patch.setattr(Tensor, name, _refuse_reading)
        patch.setattr(Tensor, "to", refuse_host(Tensor.to))
        patch.setattr(Tensor, "__getitem__", refuse_lists(Tensor.__getitem__))
        with _OnDevice(on_host):
            yield


def _refuse_reading(tensor: Tensor, *args: Any, **kwargs: Any) -> None:
    raise WaitError(f"a tensor of shape {tuple(tensor.shape)} went to the host")
