"""A saved model that learns classes from labelled images and classifies others.

Shapes: S support items, Q query items, N classes, D features, *item one item.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from kshot.algorithms.answering import NON_TRANSDUCTIVE, normalization_modes, served
from kshot.algorithms.learner import FeatureWise, Learner
from kshot.algorithms.unknown import BASELINE, UnknownRule, distances, known_score
from kshot.backbones.contract import items_at_once
from kshot.data.items.contract import ItemKind
from kshot.episodes.episode import Support
from kshot.errors import EpisodeError, ModelError
from kshot.model import SavedModel, load_model
from kshot.serving.call import read_call, read_items, read_labels

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """labels (N,) sorted and distinct; probabilities (Q, N) float32, each row sums to 1."""

    labels: NDArray[Any]
    probabilities: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Answers(Prediction):
    """A prediction with what it rests on.

    `nearest` (Q,) is the place in the support set of the example with the nearest features. `known` (Q,) float32 is the
    score that the model tells items of no class by: higher is better known. `features` are (Q, D).
    """

    nearest: NDArray[np.int64]
    known: NDArray[np.float32]
    features: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class AdaptedClassifier:
    """What a support set taught: classifies any number of queries.

    Where the learner sees items through their features alone, `learner` takes these, and `embed` makes them once.
    """

    learner: Learner[Any]
    embed: nn.Module
    on_features: bool
    item: ItemKind
    adapted: Any
    labels: NDArray[Any]
    temperature: float
    unknown: UnknownRule | None
    device: torch.device

    def classify(self, query_items: NDArray[Any]) -> Prediction:
        """Prediction for items (Q, *item). A query's row does not depend on the other queries."""
        rows = [logits.softmax(1) for logits, _ in self._answers(query_items, with_features=False)]
        return Prediction(labels=self.labels, probabilities=torch.cat(rows).cpu().numpy())

    def look(self, query_items: NDArray[Any], support: Tensor) -> Answers:
        """The same, with the nearest of the examples, of which `support` (S, D) are the features."""
        score = BASELINE if self.unknown is None else self.unknown.score
        probabilities, nearest, known, seen = [], [], [], []
        for logits, features in self._answers(query_items, with_features=True):
            assert features is not None
            probabilities.append(logits.softmax(1))
            nearest.append(distances(support, features).argmin(1))
            known.append(known_score(score, logits, support, features))
            seen.append(features)
        return Answers(
            labels=self.labels,
            probabilities=torch.cat(probabilities).cpu().numpy(),
            nearest=torch.cat(nearest).cpu().numpy(),
            known=torch.cat(known).float().cpu().numpy(),
            features=torch.cat(seen).float().cpu().numpy(),
        )

    @torch.no_grad()
    def _answers(self, query_items: NDArray[Any], *, with_features: bool) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Logits (q, N) divided by the temperature and features (q, D), some queries at a time."""
        _check_items("query", query_items, self.item)
        at_once = items_at_once(self.embed)
        for start in range(0, len(query_items), at_once):
            x = _tensor(query_items[start : start + at_once], self.item, self.device)
            features = self.embed(x, None) if self.on_features or with_features else None
            seen = features if self.on_features else x
            assert seen is not None
            yield self.learner.classify(self.adapted, seen[None])[0].float() / self.temperature, features


class FewShotClassifier:
    """Predicts without query statistics, also where the algorithm was trained with them.

    Probabilities are calibrated: logits are divided by the temperature that was fitted on meta_val.
    """

    def __init__(self, model: SavedModel) -> None:
        self.item = model.item
        self.modes = tuple(normalization_modes(model.learner))
        """In which it is scored. It answers in the non-transductive one, which is among them."""
        self._learner = served(model.learner).eval()
        self._temperature = model.temperatures.get(NON_TRANSDUCTIVE, 1.0)
        self._device = next(self._learner.parameters()).device
        self.unknown = model.unknown

    @classmethod
    def load(cls, folder: Path, *, weights_sha256: str | None = None) -> "FewShotClassifier":
        """The model in `folder`. Raises ModelError if a SHA-256 is given and the weights have another."""
        if weights_sha256 is not None:
            check_weights(folder / "weights.safetensors", weights_sha256)
        return cls(load_model(folder))

    def items(self, given: ArrayLike) -> NDArray[Any]:
        """Items (I, *item) of what is given (I, ...), by the same rule as at ingest: images may be of any size."""
        return read_items(given, self.item)

    @torch.no_grad()
    def adapt(
        self, support_items: NDArray[Any], support_labels: ArrayLike, features: Tensor | None = None
    ) -> AdaptedClassifier:
        """Learn from items (S, *item) and their labels (S,), integers or text; shots may differ by class.

        `features` (S, D) of the items are not made again, where they are known. Raises EpisodeError below 2 classes, or
        beyond what the algorithm can tell apart.
        """
        _check_items("support", support_items, self.item)
        labels, numbers = np.unique(read_labels(support_labels, len(support_items)), return_inverse=True)
        if len(labels) < 2:
            raise EpisodeError(f"support items are of {len(labels)} class; need at least 2 classes")
        x = _tensor(support_items, self.item, self._device)
        y = torch.from_numpy(numbers.astype(np.int64)).to(x.device)
        learner, on_features = self._learner, isinstance(self._learner, FeatureWise)
        if isinstance(learner, FeatureWise):
            x, learner = self._embedded(x) if features is None else features, learner.on_features()
        return AdaptedClassifier(
            learner=learner,
            embed=self._learner.backbone,
            on_features=on_features,
            item=self.item,
            adapted=learner.adapt(Support(x=x[None], y=y[None], n_way=len(labels))),
            labels=labels,
            temperature=self._temperature,
            unknown=self.unknown,
            device=self._device,
        )

    @torch.no_grad()
    def features(self, items: NDArray[Any]) -> Tensor:
        """(I, D) of items (I, *item), each embedded alone."""
        _check_items("given", items, self.item)
        return self._embedded(_tensor(items, self.item, self._device))

    def _embedded(self, x: Tensor) -> Tensor:
        at_once = items_at_once(self._learner.backbone)
        return torch.cat([self._learner.backbone(part, None) for part in torch.split(x, at_once)])

    def predict(self, support_images: ArrayLike, support_labels: ArrayLike, query_images: ArrayLike) -> Prediction:
        """Adapt to what `items` takes (S, ...) with labels (S,) and classify others (Q, ...), images or not.

        The keywords are those by which versions call it that were registered before there were other items.
        """
        return self.adapt(self.items(support_images), support_labels).classify(self.items(query_images))

    def answer(self, given: Any) -> "pd.DataFrame":
        """Probabilities of a call as `read_call` has it: a row per query, a column per class, named by its label."""
        import pandas as pd

        call = read_call(given)
        found = self.predict(call.support_items, call.support_labels, call.query_items)
        return pd.DataFrame(found.probabilities, columns=found.labels.tolist())


def _tensor(items: NDArray[Any], item: ItemKind, device: torch.device) -> torch.Tensor:
    return item.tensor(torch.from_numpy(items).to(device))


def _check_items(part: str, items: NDArray[Any], item: ItemKind) -> None:
    if items.dtype != item.dtype or items.shape[1:] != item.shape or not len(items):
        needed = f"{item.dtype} (at least 1, {', '.join(map(str, item.shape))})"
        raise ModelError(f"{part} items are {items.dtype} {items.shape}; need {needed}")


def check_weights(path: Path, expected: str) -> None:
    try:
        with path.open("rb") as file:
            found = file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"no weights at {path} ({error.strerror}); next: register the model again") from error
    if found != expected:
        raise ModelError(
            f"{path} has SHA-256 {found[:12]}; the registry names {expected[:12]}: these are not the weights that "
            "were registered; next: restore the file, or register the model again"
        )
