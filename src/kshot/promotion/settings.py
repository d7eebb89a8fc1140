"""The settings of `promotion/rule.py`, apart so that reading params.yaml imports neither pandas nor scipy."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as settings

from kshot.settings import STRICT

_Fraction = Annotated[float, Field(ge=0, le=1)]


@settings(frozen=True, kw_only=True, config=STRICT)
class PromotionSettings:
    """What a challenger must show. Accuracies, gains and drops are fractions."""

    mode: Literal["off", "dry_run", "enforce"] = "enforce"  # off decides nothing; dry_run decides and moves nothing
    approval: Literal["none", "required"] = "none"  # required: a person has to approve before the alias moves
    required_gain: Annotated[float, Field(gt=-1, lt=1)] = 0.0
    """The 95% interval of the paired difference must lie above it. Below 0 it is a non-inferiority margin."""
    floors: Mapping[str, _Fraction] = Field(default_factory=dict)  # least accuracy by setting, such as 5w1s
    max_group_drop: _Fraction | None = None  # of accuracy against the champion, in any group of classes
    max_gallery_drop: _Fraction | None = None
    """Of the accuracy by leaving one out against the champion, in any gallery of `galleries`, or .kshot/galleries."""
    galleries: str = ""
    max_calibration_error: _Fraction | None = None
    max_adapt_ms: Annotated[float, Field(gt=0)] | None = None
    max_classify_ms: Annotated[float, Field(gt=0)] | None = None  # per query
    beat_baselines: bool = True  # each in every setting, by the mean
    beat_pretrained: bool = False
    """The 95% interval of the paired difference to the best head on the pretrained backbone must lie above 0."""
