"""A model as it is exported: the served learner, in one of the formats.

Shapes: S support items, N classes, *item one item.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kshot.algorithms.answering import NON_TRANSDUCTIVE, served
from kshot.algorithms.learner import Learner
from kshot.data.items import AnyItemKind
from kshot.export.programs import ITEMS, Encoder, Format, onnx_bytes, program_bytes, traced
from kshot.export.source import Source

ENCODER, CLASSIFIER = "encoder", "classifier"
FEATURES, PROBABILITIES = "features", "probabilities"

Files = dict[str, bytes]


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Items (S, *item) and the class of each."""

    items: NDArray[Any]
    classes: list[str]

    @property
    def numbered(self) -> tuple[Tensor, Tensor, int]:
        """Items (S, *item), the number of the class of each (S,), and N: as `FewShotClassifier.adapt` numbers them."""
        labels, numbers = np.unique(self.classes, return_inverse=True)
        return torch.from_numpy(self.items), torch.from_numpy(numbers.astype(np.int64)), len(labels)


@dataclass(frozen=True, kw_only=True)
class Exportable:
    """A saved model as it is served, in the format that is wanted."""

    source: Source
    format: Format

    @property
    def item(self) -> AnyItemKind:
        return self.source.saved.item

    @property
    def algorithm(self) -> str:
        return self.source.saved.config.algorithm.name

    @property
    def temperature(self) -> float:
        return self.source.saved.temperatures.get(NON_TRANSDUCTIVE, 1.0)

    @cached_property
    def learner(self) -> Learner[Any]:
        return served(self.source.saved.learner).eval()

    @property
    def encoder(self) -> Encoder:
        return Encoder(self.learner.backbone, self.item)

    def file_of(self, module: nn.Module, name: str, found: str) -> Files:
        """The program of a module that takes stored items, by its name."""
        what = f"{name} of {self.source} ({self.source.saved.config.backbone.name}, {self.algorithm})"
        program = traced(module, torch.from_numpy(self.item.example(2)), what=f"the {what}")
        if self.format == "torch":
            return {f"{name}.pt2": program_bytes(program)}
        return {f"{name}.onnx": onnx_bytes(program, given=ITEMS, found=found, what=f"the {what}")}
