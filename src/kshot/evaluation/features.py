"""Features of a backbone that nothing trains any more: each item is embedded once, and kept on disk.

Shapes: R * n items in use with their rotations, D features.
"""

import hashlib
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kshot.algorithms.learner import FeatureWise, Learner, TransferLearner
from kshot.backbones.contract import Backbone, has_nothing_to_train, items_at_once
from kshot.backbones.layers.adapter import WithAdapter
from kshot.data.class_table import Int
from kshot.data.gather import Gather
from kshot.data.packed import PackedDataset

_ITEMS_AT_ONCE = 32  # embedded together, always the same ones: their features are the same whoever asks first


class KeptItems:
    """A gather that also keeps features: item indices (...) -> items, and `features_of` a backbone.

    They lie in `folder` under the hash of the weights and of the dataset, so that a later stage or run finds them.
    """

    def __init__(self, gather: Gather, dataset: PackedDataset, folder: Path) -> None:
        self._gather, self._dataset, self._folder = gather, dataset, folder

    def __call__(self, items: Int) -> Tensor:
        return self._gather(items)

    def features_of(self, backbone: Backbone) -> Gather | None:
        """Item indices (...) -> features (..., D), each item embedded alone; None where something is left to train."""
        if not has_nothing_to_train(backbone) or not any(True for _ in backbone.parameters()):
            return None
        n_items = len(self._dataset.labels)
        folder = self._folder / _key(backbone, self._dataset)
        return _Features(backbone, self._gather, _Store(folder, n_items, backbone.n_features))


def is_head(learner: Learner[Any]) -> bool:
    """Whether it is a head on the features of its backbone, so that any other head could stand in its place."""
    plain = not isinstance(learner.backbone, WithAdapter)
    return plain and isinstance(learner, TransferLearner) and isinstance(learner, FeatureWise)


LearnerT = TypeVar("LearnerT", bound=Learner[Any])


def on_kept_features(learner: LearnerT, gather: Gather) -> tuple[LearnerT, Gather]:
    """The learner and the gather for the features below an adapter, where nothing of the backbone there is trained.

    Both learners have the same tensors. In every other case, both are as they were given.
    """
    backbone = learner.backbone
    if isinstance(gather, KeptItems) and isinstance(backbone, WithAdapter) and isinstance(backbone.base, Backbone):
        kept = gather.features_of(backbone.base)
        if kept is not None:
            other = copy(learner)
            other._modules = learner._modules | {"backbone": backbone.on_features()}
            return other, kept
    return learner, gather


class _Store:
    """Features (R * n, D) and whether each is known (R * n,), both mapped from files that grow as they are filled."""

    def __init__(self, folder: Path, n_items: int, n_features: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.features = _mapped(folder / "features.npy", (n_items, n_features), np.dtype(np.float32))
        self.known = _mapped(folder / "known.npy", (n_items,), np.dtype(np.bool_))

    def put(self, items: Int, features: NDArray[np.float32]) -> None:
        self.features[items] = features
        self.features.flush()  # before they are called known: a process may end between the two
        self.known[items] = True
        self.known.flush()


class _Features:
    def __init__(self, backbone: Backbone, gather: Gather, store: _Store) -> None:
        self._backbone, self._gather, self._store = backbone, gather, store
        self._at_once = min(_ITEMS_AT_ONCE, items_at_once(backbone))

    @torch.no_grad()
    def __call__(self, items: Int) -> Tensor:
        items = np.asarray(items)
        for chunk in self._chunks(np.unique(items[~self._store.known[items]])):
            features = self._backbone(self._gather(chunk), None)
            self._store.put(chunk, features.float().cpu().numpy())
        device = next(self._backbone.parameters()).device
        return torch.from_numpy(self._store.features[items]).to(device)

    def _chunks(self, missing: Int) -> Iterator[Int]:
        n_items = len(self._store.known)
        for chunk in np.unique(missing // self._at_once).tolist():
            yield np.arange(chunk * self._at_once, min((chunk + 1) * self._at_once, n_items))


def _mapped(path: Path, shape: tuple[int, ...], dtype: np.dtype[np.float32] | np.dtype[np.bool_]) -> np.memmap:
    """The array of a file, of zeros where there is none yet or one of another shape."""
    if path.exists():
        kept = np.lib.format.open_memmap(path, mode="r+")
        if kept.shape == shape and kept.dtype == dtype:
            return kept
    begun = path.with_suffix(".tmp")
    np.lib.format.open_memmap(begun, mode="w+", dtype=dtype, shape=shape).flush()
    begun.replace(path)
    return np.lib.format.open_memmap(path, mode="r+")


def _key(backbone: Backbone, dataset: PackedDataset) -> str:
    """Of the weights, of what they are weights of, and of the items."""
    digest = hashlib.sha256(f"{dataset.content_hash} {backbone}".encode())
    for name, tensor in backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
