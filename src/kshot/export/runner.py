"""Runs a model that `kshot export` wrote. Needs numpy and onnxruntime: neither kshot nor torch.

    from kshot_runner import Classifier
    classifier = Classifier("FOLDER")
    adapted = classifier.adapt(items, labels)       # the few examples of each class
    labels, probabilities = adapted.classify(others)

A folder that was exported with --support holds classes of its own: FixedClassifier("FOLDER").classify(items).
Items are as kshot stores them: export.json names their shape and type, and `read` makes them from files (of pictures
with Pillow). A folder of --format torch has a program of torch.export, which needs torch in place of onnxruntime.

Shapes: S support items, Q query items, I items, N classes, D features, *item one item.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]

_ENCODER, _CLASSIFIER = "encoder", "classifier"
_JPEGS = ("JPEG", "MPO")
_DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # one channel of more than 8 bits, as Pillow names it
_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")


class Prediction(NamedTuple):
    """labels (N,) sorted and distinct; probabilities (Q, N) float32, each row sums to 1."""

    labels: Array
    probabilities: NDArray[np.float32]


class _Model:
    """An exported folder. `providers` are onnxruntime's: what it runs on, the CPU where none are given."""

    def __init__(self, folder: str | Path, name: str, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        self.folder = Path(folder)
        self.description: dict[str, Any] = json.loads((self.folder / "export.json").read_text(encoding="utf-8"))
        self.item: dict[str, Any] = self.description["item"]
        found = [path for path in (self.folder / f"{name}.onnx", self.folder / f"{name}.pt2") if path.exists()]
        if not found:
            other = "FixedClassifier" if name == _ENCODER else "Classifier"
            raise FileNotFoundError(f"no {name}.onnx or {name}.pt2 in {self.folder}; next: use {other}")
        self._run = program(found[0], providers)

    def read(self, *files: str | Path) -> Array:
        """Items (I, *item) of files, by the rule by which kshot reads them."""
        return np.stack([read_item(file, self.item) for file in files])

    def _outputs(self, items: Array) -> NDArray[np.float32]:
        shape, dtype, at_once = tuple(self.item["shape"]), self.item["dtype"], int(self.description["items_at_once"])
        if str(items.dtype) != dtype or items.shape[1:] != shape or not len(items):
            needed = f"{dtype} (at least 1, {', '.join(map(str, shape))})"
            raise ValueError(f"items are {items.dtype} {items.shape}; need {needed}")
        return np.concatenate([self._run(items[start : start + at_once]) for start in range(0, len(items), at_once)])


class Classifier(_Model):
    """Learns classes from a few examples, which it embeds by the exported encoder."""

    def __init__(self, folder: str | Path, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        super().__init__(folder, _ENCODER, providers)
        self._settings: dict[str, Any] | None = self.description["learner"]
        path = self.folder / "learner.npz"
        self._state: Mapping[str, Array] = dict(np.load(path)) if path.exists() else {}

    def features(self, items: Array) -> NDArray[np.float32]:
        """(I, D) of items (I, *item), each embedded alone."""
        return self._outputs(items)

    def adapt(self, items: Array, labels: ArrayLike) -> "AdaptedClassifier":
        """Learn from items (S, *item) and their labels (S,), integers or texts; shots may differ by class."""
        if self._settings is None:
            raise ValueError(
                f"{self.description['algorithm']} is not among {', '.join(sorted(LEARNERS))}, which adapt here; "
                "next: take features(items), or kshot export with --support FOLDER"
            )
        if np.shape(labels) != (len(items),):
            raise ValueError(f"found labels of shape {np.shape(labels)} for {len(items)} items; need one each")
        names, numbers = np.unique(np.asarray(labels), return_inverse=True)
        if len(names) < 2:
            raise ValueError(f"support items are of {len(names)} class; need at least 2 classes")
        copies = self.description["copies"]
        features = _of_copies(self.features(items), copies["embedded"], copies["support"])
        members = np.tile(np.eye(len(names))[numbers], (len(copies["support"]), 1))
        adapt = LEARNERS[self._settings["name"]]
        answer = adapt(features, members, self._settings, self._state)
        return AdaptedClassifier(classifier=self, labels=names, answer=answer)


@dataclass(frozen=True)
class AdaptedClassifier:
    """What a support set taught. `answer` gives logits (Q, N) of features (Q, D)."""

    classifier: Classifier
    labels: Array
    answer: Callable[[Array], Array]

    def classify(self, items: Array) -> Prediction:
        """Prediction for items (Q, *item). A query's row does not depend on the other queries."""
        description, features = self.classifier.description, self.classifier.features(items)
        copies = description["copies"]
        logits = [self.answer(_of_copies(features, copies["embedded"], [copy])) for copy in copies["query"]]
        probabilities = _softmax(np.mean(logits, axis=0) / description["temperature"])
        return Prediction(self.labels, probabilities.astype(np.float32))


class FixedClassifier(_Model):
    """Tells the classes apart that it was exported with."""

    def __init__(self, folder: str | Path, providers: Sequence[str] = ("CPUExecutionProvider",)) -> None:
        super().__init__(folder, _CLASSIFIER, providers)
        self.labels = np.array(json.loads((self.folder / "labels.json").read_text(encoding="utf-8")))

    def classify(self, items: Array) -> Prediction:
        """Prediction for items (Q, *item)."""
        return Prediction(self.labels, self._outputs(items))


def program(path: Path, providers: Sequence[str] = ("CPUExecutionProvider",)) -> Callable[[Array], NDArray[np.float32]]:
    """What a file of ONNX, or of torch.export, computes from an array."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=list(providers))
        name = session.get_inputs()[0].name
        return lambda items: session.run(None, {name: items})[0]
    import torch

    module = torch.export.load(str(path)).module()

    def run(items: Array) -> NDArray[np.float32]:
        with torch.no_grad():
            outputs: NDArray[np.float32] = module(torch.from_numpy(np.ascontiguousarray(items))).numpy()
        return outputs

    return run


def _of_copies(features: Array, embedded: int, which: Sequence[int]) -> Array:
    """Features (len(which) * I, D) of some of the copies of items, of features (I, embedded * D) of all, in float64."""
    parts = np.split(features.astype(np.float64), embedded, axis=1)
    return np.concatenate([parts[number] for number in which])


# Learners: features (S, D) and members (S, N), 1 where an item is of a class, else 0 -> logits (Q, N) of others (Q, D).
# Each is the algorithm of that name in kshot, where the sources and equations are named.


def _protonet(features: Array, members: Array, settings: Mapping[str, Any], state: Mapping[str, Array]) -> Any:
    means = _means(features, members)
    return lambda queries: -_squared_distances(queries, means)


def _simpleshot(features: Array, members: Array, settings: Mapping[str, Any], state: Mapping[str, Array]) -> Any:
    means = _means(_unit(features - state["centre"]), members)
    return lambda queries: -_squared_distances(_unit(queries - state["centre"]), means)


def _feat(features: Array, members: Array, settings: Mapping[str, Any], state: Mapping[str, Array]) -> Any:
    means = _means(features, members)
    query, key, value = (means @ state[f"{name}.weight"].T for name in ("of_query", "of_key", "of_value"))
    attended = _softmax(query @ key.T / np.sqrt(query.shape[1])) @ value
    adapted = means + attended @ state["output.weight"].T + state["output.bias"]
    adapted = adapted - adapted.mean(1, keepdims=True)
    adapted = adapted / np.sqrt(np.square(adapted).mean(1, keepdims=True) + settings["eps"])
    centres = adapted * state["norm.weight"] + state["norm.bias"]
    return lambda queries: -_squared_distances(queries, centres) / settings["temperature"]


def _matching(features: Array, members: Array, settings: Mapping[str, Any], state: Mapping[str, Array]) -> Any:
    def answer(queries: Array) -> Array:
        if settings["distance"] == "l2":
            scores = -_squared_distances(queries, features)
        else:
            scores = settings["cosine_scale"] * _unit(queries) @ _unit(features).T
        of_class = np.where(members.T[None] > 0, scores[:, None], -np.inf)  # (Q, N, S)
        largest = of_class.max(2)
        sums: Array = largest + np.log(np.exp(of_class - largest[:, :, None]).sum(2))
        return sums

    return answer


def _siamese(features: Array, members: Array, settings: Mapping[str, Any], state: Mapping[str, Array]) -> Any:
    n_features, shares = features.shape[1], members / members.sum(0)

    def answer(queries: Array) -> Array:
        weighed = features * state["weight"]
        differences = np.stack([np.abs(query - weighed).sum(1) for query in queries * state["weight"]]) / n_features
        logits: Array = (state["threshold"] - differences) * np.sqrt(n_features) @ shares
        return logits

    return answer


def _r2d2(features: Array, members: Array, settings: Mapping[str, Any], state: Mapping[str, Array]) -> Any:
    rows = np.hstack([features, np.ones((len(features), 1))])
    weight = settings["scale"] * _times_inverse(members.T @ rows, rows, len(rows) * settings["penalty"])
    return lambda queries: queries @ weight[:, :-1].T + weight[:, -1]


def _ridge(features: Array, members: Array, settings: Mapping[str, Any], state: Mapping[str, Array]) -> Any:
    features = _unit(features)
    mean, target_mean = features.mean(0), members.mean(0)
    rows = features - mean
    penalty = max(settings["penalty"] * np.square(rows).sum() / len(rows), settings["smallest"])
    weight = settings["scale"] * _times_inverse((members - target_mean).T @ rows, rows, penalty)
    bias = settings["scale"] * target_mean - mean @ weight.T
    return lambda queries: _unit(queries) @ weight.T + bias


def _lda(features: Array, members: Array, settings: Mapping[str, Any], state: Mapping[str, Array]) -> Any:
    features = _unit(features)
    means = _means(features, members)
    rows = features - members @ means
    within, smallest, shrinkage = np.square(rows).sum(), settings["smallest"], settings["shrinkage"]
    total = max(np.square(features - features.mean(0)).sum(), smallest)
    spread = (within if within > smallest * total else total) / rows.size
    weight = _times_inverse(means, np.sqrt((1 - shrinkage) / len(rows)) * rows, shrinkage * spread)
    bias = -(weight * means).sum(1) / 2
    return lambda queries: _unit(queries) @ weight.T + bias


def _tip_adapter(features: Array, members: Array, settings: Mapping[str, Any], state: Mapping[str, Array]) -> Any:
    keys, values = _unit(features), members / members.sum(0)
    alpha, beta = settings["alpha"], settings["beta"]
    return lambda queries: alpha * np.exp(beta * (_unit(queries) @ keys.T - 1)) @ values


LEARNERS: dict[str, Callable[..., Any]] = {
    "feat": _feat,
    "lda": _lda,
    "matching": _matching,
    "protonet": _protonet,
    "r2d2": _r2d2,
    "ridge": _ridge,
    "siamese": _siamese,
    "simpleshot": _simpleshot,
    "tip_adapter": _tip_adapter,
}


def _means(features: Array, members: Array) -> Array:
    means: Array = members.T @ features / members.sum(0)[:, None]
    return means


def _squared_distances(queries: Array, centres: Array) -> Array:
    distances: Array = np.square(queries).sum(1)[:, None] - 2 * queries @ centres.T + np.square(centres).sum(1)[None]
    return distances


def _unit(features: Array) -> Array:
    unit: Array = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return unit


def _times_inverse(right: Array, rows: Array, penalty: float) -> Array:
    """right (X'X + penalty I)^-1, (N, D), of right (N, D) and X = rows (S, D): of D equations or S, the fewer."""
    if rows.shape[1] <= len(rows):
        return np.linalg.solve(rows.T @ rows + penalty * np.eye(rows.shape[1]), right.T).T
    solved = np.linalg.solve(rows @ rows.T + penalty * np.eye(len(rows)), rows @ right.T).T
    inverse: Array = (right - solved @ rows) / penalty
    return inverse


def _softmax(logits: Array) -> Array:
    shares = np.exp(logits - logits.max(1, keepdims=True))
    softmax: Array = shares / shares.sum(1, keepdims=True)
    return softmax


# Items from files, by the rule of kshot for pictures of 8 bits and for vectors.


def read_item(file: str | Path, item: Mapping[str, Any]) -> Array:
    """One item (*item) of a file: a picture, or a .npy file of a vector. Raises ValueError for what is none here."""
    if item["kind"] == "image":
        return _picture(file, item)
    if item["kind"] != "vector":
        raise ValueError(f"{file} is to be of kind {item['kind']}; this runner reads pictures and vectors")
    numbers: Array = np.load(file, allow_pickle=False).astype(np.float32)
    if numbers.shape != tuple(item["shape"]) or not np.isfinite(numbers).all():
        raise ValueError(f"{file} holds numbers of shape {numbers.shape}; need {tuple(item['shape'])}, all finite")
    return numbers


def _picture(file: str | Path, item: Mapping[str, Any]) -> Array:
    from PIL import Image, ImageOps

    size, fit = int(item["image_size"]), item.get("fit", "crop")
    with Image.open(file) as image:
        if image.mode in _DEEP or (image.format not in _JPEGS and getattr(image, "n_frames", 1) > 1):
            raise ValueError(f"{file} has more than 8 bits per channel, or several frames; need one picture of 8 bits")
        quick = item.get("jpeg") == "scaled" and image.format in _JPEGS
        smaller = image.draft(None, (size, size)) if quick else None
        width, height = image.size if smaller is None else smaller[1][2:]
        image.load()
        orientation = image.getexif().get(0x0112, 1)
        upright = ImageOps.exif_transpose(image)
    if upright.mode in _TRANSPARENT or "transparency" in upright.info:
        ink = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", ink.size, "white"), ink).convert("RGB")
    plain = upright.convert("L" if item["channels"] == 1 else "RGB")
    if orientation in (5, 6, 7, 8):
        width, height = height, width
    left = plain.width - width if orientation in (2, 3, 6, 7) else 0
    top = plain.height - height if orientation in (3, 4, 7, 8) else 0
    resampling = Image.Resampling.HAMMING if quick else Image.Resampling.LANCZOS
    inner = (size, size)
    if fit == "pad":
        scale = size / max(width, height)
        inner = (max(round(width * scale), 1), max(round(height * scale), 1))
    elif fit == "crop":
        side = min(width, height)
        left, top, width, height = left + (width - side) * 0.5, top + (height - side) * 0.5, side, side
    pixels = np.asarray(plain.resize(inner, resampling, (left, top, left + width, top + height)))
    missing = [size - length for length in pixels.shape[:2]]
    around = [(n // 2, n - n // 2) for n in missing] + [(0, 0)] * (pixels.ndim - 2)
    pixels = np.pad(pixels, around, mode="edge").reshape(size, size, int(item["channels"]))
    return 255 - pixels if item.get("invert") else pixels
