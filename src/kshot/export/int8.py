"""Encoders with weights and activations of 8 bits, and what that costs on episodes of unseen classes.

Shapes: I items, C calibration items, D features, E episodes of a setting.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kshot.algorithms.learner import Learner
from kshot.data.class_table import Int
from kshot.data.packed import PackedDataset
from kshot.episodes.pools import FrozenPool
from kshot.evaluation.intervals import Interval, mean_interval, paired_difference
from kshot.evaluation.scoring import score_episodes
from kshot.export.held_out import HeldOut
from kshot.export.programs import ITEMS

Embed = Callable[[NDArray[Any]], NDArray[np.float32]]
"""Stored items (I, *item) -> features (I, D)."""

_PRODUCTS = ("Conv", "Gemm", "MatMul")  # what is quantised: sums, norms and activations stay in float32
_OF_HEAD = "head/"
_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Accuracy by setting without and with 8 bits, and the paired difference over all of them, on the same episodes."""

    float32: Mapping[str, Interval]
    int8: Mapping[str, Interval]
    difference: Interval

    def __str__(self) -> str:
        settings = ", ".join(
            f"{name} {100 * before.mean:.2f} -> {100 * self.int8[name].mean:.2f}"
            for name, before in self.float32.items()
        )
        gain = f"{100 * self.difference.mean:+.2f} ± {100 * self.difference.half_width:.2f} points"
        return f"{gain} of accuracy on the same episodes ({settings})"


def quantise(encoder: Path, items: NDArray[Any]) -> bytes:
    """The encoder of ONNX with static quantisation, its ranges those of calibration items (C, *item).

    Weights have a scale per channel. Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", 2018, section 2.
    """
    from onnxruntime.quantization import CalibrationDataReader, quant_pre_process, quantize_static

    class Calibration(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._parts: Iterator[NDArray[Any]] = iter(np.split(items, range(_AT_ONCE, len(items), _AT_ONCE)))

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            part = next(self._parts, None)
            return None if part is None else {ITEMS: part}

    prepared, target = encoder.with_name("prepared.onnx"), encoder.with_name("quantised.onnx")
    quant_pre_process(str(encoder), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(target),
        Calibration(),
        op_types_to_quantize=list(_PRODUCTS),
        per_channel=True,
        extra_options={"MatMulConstBOnly": True},
    )
    return target.read_bytes()


def joined(encoder: bytes, head: bytes) -> bytes:
    """One file of ONNX of an encoder and of what follows it: items -> what the head gives."""
    import onnx
    from onnx.compose import merge_models

    first, second = onnx.load_from_string(encoder), onnx.load_from_string(head)
    pairs = [(first.graph.output[0].name, second.graph.input[0].name)]
    model = merge_models(first, second, io_map=pairs, prefix2=_OF_HEAD)
    (output,) = model.graph.output
    named = output.name.removeprefix(_OF_HEAD)
    for node in model.graph.node:
        node.output[:] = [named if name == output.name else name for name in node.output]
    output.name = named
    content: bytes = model.SerializeToString()
    return content


def cost_of_int8(learner: Learner[Any], project: HeldOut | str, float32: Embed, int8: Embed) -> Cost | str:
    """Of a learner on features, which either encoder makes of the items; why it cannot be measured, in a few words."""
    if isinstance(project, str):
        return f"its cost is not measured: {project}"
    if isinstance(project.pools, str):
        return f"its cost is not measured: {project.pools}"
    limit = learner.max_way or max(pool.shape.n_way for pool in project.pools.values())
    pools = {name: pool for name, pool in project.pools.items() if pool.shape.n_way <= limit}
    if not pools:
        return f"its cost is not measured: every frozen episode of meta_test has more than {limit} classes"
    without, with_int8 = (_accuracy(learner, project.dataset, pools, embed) for embed in (float32, int8))
    return Cost(
        float32={name: mean_interval(values) for name, values in without.items()},
        int8={name: mean_interval(values) for name, values in with_int8.items()},
        difference=paired_difference(with_int8, without),
    )


def of_cost(cost: Cost | str) -> dict[str, Any]:
    """As export.json has it."""
    return {"accuracy": None, "why": cost} if isinstance(cost, str) else {"accuracy": asdict(cost)}


def _accuracy(
    learner: Learner[Any], dataset: PackedDataset, pools: Mapping[str, FrozenPool], embed: Embed
) -> dict[str, NDArray[np.float64]]:
    """(E,) of each setting."""
    gather = _Features(dataset, list(pools.values()), embed)
    return {name: score_episodes(learner, pool.indices, gather).accuracy for name, pool in pools.items()}


class _Features:
    """Item indices (...) -> features (..., D); every item of the pools is embedded once."""

    def __init__(self, dataset: PackedDataset, pools: Sequence[FrozenPool], embed: Embed) -> None:
        used = [part.ravel() for pool in pools for part in (pool.indices.support, pool.indices.query)]
        self._items = np.unique(np.concatenate(used))
        parts = np.split(self._items, range(_AT_ONCE, len(self._items), _AT_ONCE))
        self._features = torch.from_numpy(np.concatenate([embed(dataset.gather(part)) for part in parts]))

    def __call__(self, items: Int) -> Tensor:
        return self._features[torch.from_numpy(np.searchsorted(self._items, items))]
