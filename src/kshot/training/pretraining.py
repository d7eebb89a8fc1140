"""Settings of the pretrain stage: ordinary classification of the meta_train classes, before any episode.

Its model is a baseline of the evaluation, and may be what meta-training starts from.
"""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as settings

from kshot.settings import STRICT
from kshot.training.loop import TrainingSettings


@settings(frozen=True, kw_only=True, config=STRICT)
class NoPretraining:
    name: Literal["none"] = "none"


@settings(frozen=True, kw_only=True, config=STRICT)
class SupervisedPretraining:
    """Adam over `n_steps` batches with a cosine schedule; the weights that are best on meta_val are kept."""

    name: Literal["supervised"] = "supervised"
    n_steps: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)] = 128  # items
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    validate_every: Annotated[int, Field(ge=1)] = 500  # steps
    patience: Annotated[int, Field(ge=1)] = 10  # validations in a row without a better accuracy
    checkpoint_every_s: Annotated[float, Field(ge=0)] = 30.0

    @property
    def training(self) -> TrainingSettings:
        return TrainingSettings(
            n_steps=self.n_steps,
            outer_lr=self.learning_rate,
            schedule="cosine",
            batch_size=self.batch_size,
            validate_every=self.validate_every,
            patience=self.patience,
            checkpoint_every_s=self.checkpoint_every_s,
        )


PretrainConfig = Annotated[NoPretraining | SupervisedPretraining, Field(discriminator="name")]
