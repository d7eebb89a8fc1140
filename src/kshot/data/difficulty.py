"""How often a model confuses each class of the training: data/difficulty/NAME.json, for episodes of hard classes.

A name stands for its content for good: other errors need another name. So the settings of a run say what it used.
"""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass as settings

from kshot.errors import DataError
from kshot.settings import STRICT

FOLDER = "difficulty"

Count = Annotated[int, Field(ge=0)]


@settings(frozen=True, kw_only=True, config=STRICT)
class Difficulty:
    """The answers of the model with these weights to queries of the classes of `dataset`: how many, how many wrong."""

    dataset: str
    data_hash: str
    weights_sha256: str
    episodes: str
    queries: dict[str, Count]
    errors: dict[str, Count]
    format_version: Literal[1] = 1

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if self.errors.keys() != self.queries.keys() or any(self.errors[name] > n for name, n in self.queries.items()):
            raise ValueError("need of each class as many errors as queries at most")
        return self

    @property
    def sha256(self) -> str:
        """Of the file as it is kept."""
        return sha256(difficulty_json(self)).hexdigest()

    @property
    def lineage(self) -> dict[str, str]:
        """Which errors these are, and the SHA-256 of the weights of the model that made them."""
        return {"difficulty_sha256": self.sha256, "difficulty_of_weights": self.weights_sha256}

    def error_rates(self, classes: Mapping[str, int], n_classes: int) -> NDArray[np.float64]:
        """(n_classes,) by the number that `classes` gives a name, one error and one right answer added to each.

        A class of which nothing is known has the mean of the others. Raises DataError where that is more than half.
        """
        known = {
            classes[name]: (self.errors[name] + 1) / (n_queries + 2)
            for name, n_queries in self.queries.items()
            if name in classes
        }
        if 2 * len(known) < n_classes:
            raise DataError(
                f"the errors of {self.episodes} know {len(known):,} of {n_classes:,} classes of meta_train; needed "
                f"half of them; next: train on this {self.dataset} with sampler: {{name: uniform}}, then "
                "kshot difficulty with another name"
            )
        rates = np.full(n_classes, np.mean([*known.values()]))
        rates[[*known]] = [*known.values()]
        return rates


def difficulty_path(data_folder: Path, name: str) -> Path:
    return data_folder / FOLDER / f"{name}.json"


def read_difficulty(data_folder: Path, name: str, dataset: str) -> Difficulty:
    """Raise DataError where data/difficulty/NAME.json is missing, damaged, or of another dataset."""
    path = difficulty_path(data_folder, name)
    try:
        found = TypeAdapter(Difficulty).validate_json(path.read_bytes())
    except OSError as error:
        there = sorted(file.stem for file in path.parent.glob("*.json"))
        raise DataError(
            f"no difficulty {name!r}; found: {', '.join(there) or 'none'}; next: kshot difficulty {name}, after a run "
            "with another sampler"
        ) from error
    except ValidationError as error:
        raise DataError(
            f"{path} does not say how hard classes are ({error.errors()[0]['msg']}); "
            "next: dvc checkout --force data.dvc"
        ) from error
    if found.dataset != dataset:
        raise DataError(
            f"{path} is of the classes of {found.dataset}; needed those of {dataset}; next: kshot difficulty NAME, "
            f"after a run on {dataset}"
        )
    return found


def difficulty_json(difficulty: Difficulty) -> bytes:
    return TypeAdapter(Difficulty).dump_json(difficulty, indent=1) + b"\n"
