"""Pretrained weights as data: data/weights/NAME holds the tensors as safetensors, and a record of where they are from.

A name stands for its bytes for good: other weights need another name. So the settings of a run say which bytes it used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter
from pydantic import ValidationError as PydanticError
from pydantic.dataclasses import dataclass as settings
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from kshot.errors import DataError
from kshot.settings import STRICT

RECORD_FILE, TENSORS_FILE = "weights.json", "weights.safetensors"

OfChannels = tuple[float, float, float]


@settings(frozen=True, kw_only=True, config=STRICT)
class WeightsRecord:
    """Where weights are from, and what their network expects of pixels in 0..1: mean and std of each channel.

    `sha256` is that of the tensors as they are kept here. `input_size` is the side in pixels that they were trained on.
    """

    source: str
    licence: str
    sha256: str
    mean: OfChannels
    std: OfChannels
    input_size: Annotated[int | None, Field(ge=1)] = None
    format_version: Literal[1] = 1


@dataclass(frozen=True, kw_only=True)
class PretrainedWeights:
    """Weights under the names that their network has for them."""

    name: str
    record: WeightsRecord
    tensors: Mapping[str, Tensor]


def read_record(folder: Path) -> WeightsRecord:
    """Raise DataError where there are no weights in `folder`, or a record that does not say what they are."""
    try:
        return TypeAdapter(WeightsRecord).validate_json((folder / RECORD_FILE).read_bytes())
    except OSError as error:
        there = sorted(path.parent.name for path in folder.parent.glob(f"*/{RECORD_FILE}"))
        raise DataError(
            f"no weights {folder.name!r}; found: {', '.join(there) or 'none'}; "
            f"next: kshot weights add {folder.name} --from FILE, or timm:MODEL, torchvision:MODEL, huggingface:REPO"
        ) from error
    except PydanticError as error:
        raise DataError(f"{folder / RECORD_FILE} does not describe weights ({error.errors()[0]['msg']})") from error


def read_weights(folder: Path) -> PretrainedWeights:
    """Raise DataError where they are missing, or not the bytes that the record names."""
    record = read_record(folder)
    content = (folder / TENSORS_FILE).read_bytes()
    found = sha256(content).hexdigest()
    if found != record.sha256:
        raise DataError(
            f"{folder / TENSORS_FILE} has SHA-256 {found[:12]}; its record names {record.sha256[:12]}; "
            "next: dvc checkout --force data.dvc"
        )
    return PretrainedWeights(name=folder.name, record=record, tensors=tensors_from_bytes(content))


def weights_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The tensors as they are kept."""
    return tensors_to_bytes({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
