"""The log of a service, read back: the last answers of a gallery, and what people said of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from kshot.errors import DataError
from kshot.monitoring.drift import Sample
from kshot.printing import listed
from kshot.serving.log import ANSWERS, FEEDBACK

_NEXT = "next: kshot serve, and ask it"


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Rows as they were logged, oldest first, all of one model; `right` is the corrected class, or None."""

    gallery: str
    model: str
    rows: pd.DataFrame

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sample(self) -> Sample:
        return sample_of(self.rows)

    @property
    def unknown(self) -> float:
        """The fraction that was told to be of none of the classes."""
        return float(self.rows["unknown"].fillna(False).astype(bool).mean())

    @property
    def corrected(self) -> pd.DataFrame:
        """Rows of which somebody said the right class."""
        return self.rows[self.rows["right"].notna()]

    def between(self, start: int, stop: int) -> "Answers":
        return Answers(gallery=self.gallery, model=self.model, rows=self.rows.iloc[start:stop])


def read_answers(folder: Path, gallery: str) -> Answers:
    """All answers of the model that answered a gallery last. Raises DataError where there is none."""
    rows = _read(folder / ANSWERS)
    known = sorted(rows["gallery"].unique()) if len(rows) else []
    if gallery not in known:
        raise DataError(
            f"no answer about the gallery {gallery!r} in {folder}; found: {listed(known) or 'none'}; {_NEXT}"
        )
    rows = rows[rows["gallery"] == gallery].sort_values(["time", "id"], kind="stable")
    model = str(rows["model"].iloc[-1])
    rows = rows[rows["model"] == model]
    feedback = _read(folder / FEEDBACK)
    right = {} if feedback.empty else feedback.sort_values("time").set_index("id")["class_name"].to_dict()
    rows = rows.assign(right=rows["id"].map(right))
    return Answers(gallery=gallery, model=model, rows=rows.reset_index(drop=True))


def corrected_pictures(folder: Path, gallery: str) -> Iterator[tuple[str, bytes]]:
    """The right class and the picture of each answer about a gallery that has feedback, whatever model gave it.

    Raises DataError where no answer has both.
    """
    feedback, answers = _read(folder / FEEDBACK), _read(folder / ANSWERS)
    if len(feedback) and len(answers):
        right = feedback.sort_values("time").drop_duplicates("id", keep="last")
        found = answers[answers["gallery"] == gallery].merge(right, on="id", suffixes=("_answered", ""))
        pictured = found[found["picture"].notna()].sort_values("id")
        yield from zip(pictured["class_name"], pictured["picture"], strict=True)
        if len(pictured):
            return
        if len(found):
            raise DataError(
                f"found {len(found)} answers with feedback in {folder}, and the picture of none; need "
                "log: {pictures: true} in the settings of the service; next: kshot serve --settings FILE"
            )
    raise DataError(f"no answer about the gallery {gallery!r} in {folder} has feedback; need some; {_NEXT}")


def galleries_in(folder: Path) -> list[str]:
    rows = _read(folder / ANSWERS)
    return sorted(rows["gallery"].unique()) if len(rows) else []


def sample_of(rows: pd.DataFrame) -> Sample:
    return Sample(
        features=np.stack(rows["features"].to_list()).astype(np.float64),
        probability=rows["probability"].to_numpy(np.float64),
        known=rows["known"].to_numpy(np.float64),
    )


def _read(folder: Path) -> pd.DataFrame:
    files = sorted(folder.glob("*/*.parquet"))
    return pd.concat([pd.read_parquet(path) for path in files], ignore_index=True) if files else pd.DataFrame()
