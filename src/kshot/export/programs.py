"""Networks as programs that run outside of kshot: what is traced, and how it becomes a file.

Both take items as they are stored, any number of them, each alone: the kind of item is part of the program.

Shapes: I items, D features, N classes, *item one item.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from io import BytesIO, StringIO
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from kshot.algorithms.learner import Learner
from kshot.data.items.contract import ItemKind
from kshot.errors import ConfigError, ModelError

Format = Literal["onnx", "torch"]
OPSET = 18
ITEMS = "items"

_EXAMPLES = 2
LARGEST_BYTES = 2_000_000_000  # a file of ONNX is one message of protobuf, which ends at 2 GiB
_MODULES = ("onnx", "onnxruntime", "onnxscript")
_SHOWN = 200  # characters of what the exporter says

AdaptedT = TypeVar("AdaptedT")


class Encoder(nn.Module):
    """Stored items (I, *item) -> features (I, D), each item alone."""

    def __init__(self, backbone: nn.Module, item: ItemKind) -> None:
        super().__init__()
        self.backbone = backbone
        self.item = item

    def forward(self, items: Tensor) -> Tensor:
        features: Tensor = self.backbone(self.item.tensor(items), None)
        return features


class FixedClasses(nn.Module):
    """Stored items (I, *item) -> probabilities (I, N) of the classes that `adapted` was learned from."""

    def __init__(self, learner: Learner[AdaptedT], adapted: AdaptedT, item: ItemKind, temperature: float) -> None:
        super().__init__()
        self.learner = learner
        self.adapted = adapted
        self.item = item
        self.temperature = temperature

    def forward(self, items: Tensor) -> Tensor:
        logits = self.learner.classify(self.adapted, self.item.tensor(items)[None])[0].float()
        return (logits / self.temperature).softmax(1)


class FixedHead(nn.Module):
    """The same from features (I, D), for a learner on features."""

    def __init__(self, learner: Learner[AdaptedT], adapted: AdaptedT, temperature: float) -> None:
        super().__init__()
        self.learner = learner
        self.adapted = adapted
        self.temperature = temperature

    def forward(self, features: Tensor) -> Tensor:
        return (self.learner.classify(self.adapted, features[None])[0].float() / self.temperature).softmax(1)


def constant(value: Any) -> Any:
    """What a support set taught, as constants: the same without a graph behind its tensors."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return type(value)((name, constant(one)) for name, one in value.items())
    if isinstance(value, list | tuple):
        return type(value)(constant(one) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{one.name: constant(getattr(value, one.name)) for one in fields(value)})
    return value


@torch.no_grad()
def traced(module: nn.Module, example: Tensor, *, what: str) -> ExportedProgram:
    """The program of a module that takes any number of things such as `example` (I, ...). Leaves the module as it is.

    Raises ModelError, which names `what`, for one that cannot be traced.
    """
    plain = deepcopy(module).eval().requires_grad_(False)
    try:
        with _silence():
            return torch.export.export(plain, (example,), dynamic_shapes=({0: Dim(ITEMS)},), strict=False)
    except Exception as error:  # whatever the network does that cannot be traced
        raise _cannot(what, "traced by torch.export", error, "kshot predict, which runs it as it is") from error


def program_bytes(program: ExportedProgram) -> bytes:
    buffer = BytesIO()
    with _silence():
        torch.export.save(program, buffer)
    return buffer.getvalue()


def onnx_bytes(program: ExportedProgram, *, given: str, found: str, what: str) -> bytes:
    """A file of ONNX with one input and one output of these names, dynamic in the number of items."""
    size = sum(tensor.nbytes for tensor in (*program.state_dict.values(), *_tensors(program.constants)))
    if size > LARGEST_BYTES:
        raise ModelError(
            f"{what} has {size:,} bytes of weights; a file of ONNX holds {LARGEST_BYTES:,}; next: --format torch"
        )
    try:
        with _silence():
            made = torch.onnx.export(
                program.run_decompositions(_DECOMPOSED),
                dynamo=True,
                opset_version=OPSET,
                input_names=[given],
                output_names=[found],
                external_data=False,
                verbose=False,
            )
            assert made is not None
            content: bytes = _with_named_size(made.model_proto).SerializeToString()
    except Exception as error:  # an operation that ONNX has no word for surfaces as one of several types
        raise _cannot(what, "written as ONNX", error, "--format torch") from error
    return content


def check_onnx_installed() -> None:
    """Raise ConfigError where a package is missing that writes or runs ONNX."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name not in _MODULES:
            raise
        raise ConfigError(
            f"ONNX needs {error.name}, which is not installed; next: pip install 'kshot[export]', or --format torch"
        ) from error


def _with_named_size(model: Any) -> Any:
    """The model of ONNX with the number of items called so, where the exporter has a number for a name."""
    ends = [*model.graph.input, *model.graph.output]
    for end in ends:
        end.type.tensor_type.shape.dim[0].dim_param = ITEMS
    return model


def _cannot(what: str, done: str, error: Exception, way_on: str) -> ModelError:
    words = _root(error)
    why = " ".join(str(words).split())[:_SHOWN]
    return ModelError(f"{what} cannot be {done} ({type(words).__name__}: {why}); next: {way_on}")


def _root(error: BaseException) -> BaseException:
    """The first of the errors that led to this one: the exporters wrap it in several layers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _tensors(constants: Mapping[str, Any]) -> Iterator[Tensor]:
    return (value for value in constants.values() if isinstance(value, Tensor))


@contextmanager
def _silence() -> Iterator[None]:
    """The exporters warn of themselves, log, and print a graph where they fail; what goes wrong raises all the same."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _distances(a: Tensor, b: Tensor, p: float = 2.0, mode: int | None = None) -> Tensor:
    """torch.cdist in operations that ONNX has: sums of absolute differences, (B, Q, S) of (B, Q, D) and (B, S, D)."""
    if p != 1:
        raise NotImplementedError(f"cdist of p = {p}")
    return (a[..., :, None, :] - b[..., None, :, :]).abs().sum(-1)


_DECOMPOSED: dict[torch._ops.OperatorBase, Callable[..., Any]] = {
    torch.ops.aten.cdist.default: _distances,
}
