"""How far an export is from the model itself.

Shapes: Q query items, N classes, *item one item.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kshot.episodes.episode import Support
from kshot.errors import ModelError
from kshot.export import runner
from kshot.export.exportable import FEATURES, PROBABILITIES, Exportable, Labelled
from kshot.serving.classifier import FewShotClassifier

PARITY = 1e-4  # of probabilities, and of features in units of the largest: what an export may differ from the model
_ROUNDINGS = 4  # of the model itself, where these are more: two answers in float32 differ by a few of them
_QUERIES, _WAYS, _SHOTS = 32, 5, 2  # of the examples that are asked about, where no support set is given


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The largest differences by name. `rounding` is how far the model in float32 is from itself in float64.

    It is looked at only where the probabilities differ by more than `PARITY`, and None elsewhere: distances of many
    large features have few digits left in float32.
    """

    differences: Mapping[str, float]
    rounding: float | None

    def __str__(self) -> str:
        found = ", ".join(f"{value:.1e} of {name}" for name, value in self.differences.items())
        return found if self.rounding is None else f"{found}, of which the model rounds {self.rounding:.1e} by itself"

    @property
    def description(self) -> dict[str, float]:
        rounding = {} if self.rounding is None else {"rounding_of_the_model": self.rounding}
        return {**self.differences, **rounding}

    def check(self, exportable: Exportable) -> None:
        """Raise ModelError where the export answers otherwise than the model."""
        of_probabilities = max(PARITY, _ROUNDINGS * (self.rounding or 0.0))
        for name, found in self.differences.items():
            limit = of_probabilities if name == PROBABILITIES else PARITY
            if not found <= limit:
                raise ModelError(
                    f"the export of {exportable.source} differs from the model by {found:.2g} of its {name}; "
                    f"need at most {limit:.2g}; next: kshot predict, which runs the model itself"
                )


def parity(exportable: Exportable, support: Labelled | None, folder: Path) -> Parity:
    """That of the export in `folder`, run by the runner, on examples of the kind of item and on the support set."""
    item = exportable.item
    queries = item.example(_QUERIES)
    if support is not None:
        queries = np.concatenate([queries, support.items])
        return _of_probabilities(exportable, support, queries, runner.FixedClassifier(folder).classify(queries), {})
    classifier = runner.Classifier(folder)
    with torch.no_grad():
        features = exportable.encoder(torch.from_numpy(queries)).numpy()
    largest = max(float(np.abs(features).max()), float(np.finfo(np.float32).tiny))
    differences = {FEATURES: _difference(classifier.features(queries), features) / largest}
    if classifier.description["learner"] is None:
        return Parity(differences=differences, rounding=None)
    classes = [f"{number % _WAYS}" for number in range(_WAYS * _SHOTS)]
    shown = Labelled(items=item.example(len(classes)), classes=classes)
    found = classifier.adapt(shown.items, shown.classes).classify(queries)
    return _of_probabilities(exportable, shown, queries, found, differences)


def _of_probabilities(
    exportable: Exportable,
    shown: Labelled,
    queries: NDArray[Any],
    found: runner.Prediction,
    differences: Mapping[str, float],
) -> Parity:
    classifier = FewShotClassifier(exportable.source.saved)
    expected = classifier.adapt(shown.items, shown.classes).classify(queries).probabilities
    difference = _difference(found.probabilities, expected)
    return Parity(
        differences={**differences, PROBABILITIES: difference},
        rounding=_rounding(exportable, shown, queries, expected) if difference > PARITY else None,
    )


def _rounding(
    exportable: Exportable, shown: Labelled, queries: NDArray[Any], answered: NDArray[np.float32]
) -> float | None:
    """The largest difference of what the model answered (Q, N) to what it answers in float64; None where it cannot."""
    learner, tensor = deepcopy(exportable.learner).double(), exportable.item.tensor
    x, y, n_way = shown.numbered
    support = Support(x=tensor(x).double()[None], y=y[None], n_way=n_way)
    try:
        with torch.no_grad():
            logits = learner.classify(learner.adapt(support), tensor(torch.from_numpy(queries)).double()[None])[0]
    except RuntimeError:  # a network that makes float32 of its own
        return None
    return _difference(answered, (logits / exportable.temperature).softmax(1).numpy())


def _difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    """The largest; not a number where there is one that is none."""
    return float(np.abs(one - other).max())
