"""The settings of `facts.py`, apart so that reading params.yaml does not import pandas: 40 MB in every process."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass as settings

from kshot.settings import STRICT


@settings(frozen=True, kw_only=True, config=STRICT)
class FactSettings:
    """What to look for in a dataset, and how much of it to tolerate."""

    blank_std: Annotated[float, Field(ge=0, le=128)] = 1.0  # an item is blank below this spread of its pixels
    max_blank_share: Annotated[float, Field(ge=0, lt=1)] = 0.0  # critical beyond it
    min_contrast: Annotated[int, Field(ge=0, le=255)] = 16  # brightest minus darkest pixel of an item
    near_duplicate_bits: Annotated[int, Field(ge=0, le=12)] = 4  # of the 64 of the difference hash
    near_duplicate_correlation: Annotated[float, Field(gt=0, le=1)] = 0.95
    near_duplicate_items: Annotated[int, Field(ge=0)] = 50_000  # of a larger dataset, this many drawn by the seed
    max_near_duplicates: Annotated[int, Field(ge=0)] = 0  # pairs across classes
    max_quarantined_share: Annotated[float, Field(ge=0, lt=1)] = 0.05  # critical beyond it
    drift_mean: Annotated[float, Field(ge=0)] = 8.0  # the last version's items against the earlier ones
    drift_std: Annotated[float, Field(ge=0)] = 8.0
    drift_classes: Annotated[float, Field(ge=0, le=1)] = 0.1  # share of the items that changed class
