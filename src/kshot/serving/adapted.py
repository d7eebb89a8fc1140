"""What a gallery has taught a model, and a bounded memory for it.

Shapes: S examples of a gallery, D features, *item one item.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from threading import Lock
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kshot.errors import EpisodeError
from kshot.printing import counted
from kshot.serving.classifier import AdaptedClassifier, Answers
from kshot.serving.galleries import Contents, Example, GalleryStore
from kshot.serving.served_model import ServedModel

ValueT = TypeVar("ValueT")


class Memory(Generic[ValueT]):
    """Values by name. Those that were not asked for the longest are forgotten when there are too many bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._bytes = max_bytes, 0
        self._values: OrderedDict[str, tuple[ValueT, int]] = OrderedDict()
        self._lock = Lock()

    def get(self, name: str) -> ValueT | None:
        with self._lock:
            if name not in self._values:
                return None
            self._values.move_to_end(name)
            return self._values[name][0]

    def put(self, name: str, value: ValueT, n_bytes: int) -> None:
        with self._lock:
            self._forget(name)
            self._values[name] = value, n_bytes
            self._bytes += n_bytes
            while self._bytes > self._max_bytes and len(self._values) > 1:
                self._forget(next(iter(self._values)))

    def forget(self, name: str) -> None:
        with self._lock:
            self._forget(name)

    def names(self) -> list[str]:
        with self._lock:
            return list(self._values)

    @property
    def n_bytes(self) -> int:
        return self._bytes

    def _forget(self, name: str) -> None:
        if name in self._values:
            self._bytes -= self._values.pop(name)[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class AdaptedGallery:
    """A model that knows the examples of a gallery at one revision. `features` (S, D) are in their order."""

    model: ServedModel
    contents: Contents
    classifier: AdaptedClassifier
    items: NDArray[Any]
    features: Tensor

    @cached_property
    def threshold(self) -> float | None:
        """Below it an item is of none of the classes; None where the model cannot tell."""
        rule = self.classifier.unknown
        return None if rule is None else rule.threshold(len(self.contents.examples) / len(self.classifier.labels))

    @property
    def n_bytes(self) -> int:
        return _bytes_of(self.classifier.adapted) + self.features.nbytes + self.items.nbytes

    def look(self, items: NDArray[Any]) -> Answers:
        return self.classifier.look(items, self.features)


def adapt_gallery(
    model: ServedModel,
    store: GalleryStore,
    name: str,
    contents: Contents,
    *,
    decoded: Memory[NDArray[Any]],
    before: AdaptedGallery | None = None,
) -> AdaptedGallery:
    """Adapt a model to a gallery. What `before` knows of the same model is not computed again.

    Raises EpisodeError below 2 classes.
    """
    if len(contents.classes) < 2:
        raise EpisodeError(
            f"the gallery {name} has {counted(len(contents.classes), 'class')}; need at least 2 classes; "
            "next: put an example of another into it"
        )
    items = _decoded(model, store, name, contents.examples, decoded)
    known = _known_features(before, model)
    new = [number for number, example in enumerate(contents.examples) if example.id not in known]
    made = dict(zip(new, model.classifier.features(items[new]), strict=True)) if new else {}
    rows = [made[n] if n in made else known[example.id] for n, example in enumerate(contents.examples)]
    labels = [example.class_name for example in contents.examples]
    features = torch.stack(rows)
    return AdaptedGallery(
        model=model,
        contents=contents,
        classifier=model.classifier.adapt(items, np.array(labels, dtype=np.str_), features),
        items=items,
        features=features,
    )


def _decoded(
    model: ServedModel, store: GalleryStore, name: str, examples: Sequence[Example], decoded: Memory[NDArray[Any]]
) -> NDArray[Any]:
    """Items (S, *item), of which those that were decoded before need not be read."""
    item = model.classifier.item
    keys = [f"{item!r} {example.id}" for example in examples]
    known = {key: found for key in keys if (found := decoded.get(key)) is not None}
    new = {key: example for key, example in zip(keys, examples, strict=True) if key not in known}
    for (key, _), content in zip(new.items(), store.read(name, list(new.values())), strict=True):
        known[key] = item.read(content).item
        decoded.put(key, known[key], known[key].nbytes)
    return np.stack([known[key] for key in keys])


def _known_features(before: AdaptedGallery | None, model: ServedModel) -> dict[str, Tensor]:
    if before is None or before.model is not model:
        return {}
    return {example.id: row for example, row in zip(before.contents.examples, before.features.unbind(), strict=True)}


def _bytes_of(value: Any) -> int:
    """Of all tensors in a value of dataclasses, tuples, lists and mappings."""
    if isinstance(value, Tensor):
        return value.nbytes
    if is_dataclass(value):
        return sum(_bytes_of(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, Mapping):
        return sum(map(_bytes_of, value.values()))
    return sum(map(_bytes_of, value)) if isinstance(value, tuple | list) else 0
