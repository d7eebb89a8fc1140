"""How well the examples of a gallery are told apart: each is asked of a model that was shown all the others.

Shapes: S examples of a gallery, D features.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from kshot.errors import EpisodeError
from kshot.seeding import generator
from kshot.serving.adapted import AdaptedGallery, Memory, adapt_gallery
from kshot.serving.galleries import GalleryStore
from kshot.serving.served_model import ServedModel

_NOTE = "leave-one-out-"
_CONFIDENCE = 0.95
_DECODED_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class Told:
    """What an example was taken for."""

    class_name: str
    id: str
    told: str

    @property
    def right(self) -> bool:
        return self.told == self.class_name


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut:
    """`told` are the examples that were tried: of classes with two or more, as many as were asked for."""

    model: str
    revision: str
    told: tuple[Told, ...]

    @classmethod
    def of(cls, adapted: AdaptedGallery, told: Mapping[int, str]) -> "LeaveOneOut":
        examples = adapted.contents.examples
        return cls(
            model=adapted.model.name,
            revision=adapted.contents.revision,
            told=tuple(
                Told(class_name=examples[number].class_name, id=examples[number].id, told=class_name)
                for number, class_name in told.items()
            ),
        )

    @property
    def accuracy(self) -> float | None:
        return sum(one.right for one in self.told) / len(self.told) if self.told else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% Wilson interval of the accuracy."""
        if not self.told:
            return None
        found = binomtest(sum(one.right for one in self.told), len(self.told)).proportion_ci(_CONFIDENCE, "wilson")
        return float(found.low), float(found.high)

    @property
    def confused(self) -> list[tuple[str, str, int]]:
        """Class, what it was taken for, and how often; the most frequent first."""
        pairs = Counter((one.class_name, one.told) for one in self.told if not one.right)
        return [(*pair, n) for pair, n in pairs.most_common()]


@dataclass(frozen=True, kw_only=True)
class Change:
    """Accuracy of two models on the examples that both were asked about, `n` of them."""

    before: str
    after: str
    n: int
    accuracy_before: float
    accuracy_after: float

    @property
    def verdict(self) -> str:
        if self.accuracy_after == self.accuracy_before:
            return "the same"
        return "better" if self.accuracy_after > self.accuracy_before else "worse"


def examples_to_try(adapted: AdaptedGallery, most: int) -> list[int]:
    """Their places: those of classes with two examples or more, drawn by the names of the examples where there are more
    than `most`; none where less than two classes would be left."""
    counts = Counter(example.class_name for example in adapted.contents.examples)
    places = [n for n, example in enumerate(adapted.contents.examples) if counts[example.class_name] > 1]
    if len(places) <= most:
        return places
    drawn = generator(0, "leave one out").choice(len(places), most, replace=False)
    return sorted(np.array(places)[drawn].tolist())


def leave_one_out(model: ServedModel, store: GalleryStore, gallery: str, most: int = 200) -> LeaveOneOut:
    """How well a model knows a gallery as it is now, all at once; what is known of the same two is read.

    Of a gallery that the model cannot learn, such as one of a single class, nothing is told.
    """
    contents = store.contents(gallery)
    try:
        adapted = adapt_gallery(model, store, gallery, contents, decoded=Memory(_DECODED_BYTES))
    except EpisodeError:
        return LeaveOneOut(model=model.name, revision=contents.revision, told=())
    kept = kept_leave_one_out(store, gallery, adapted)
    if kept is None:
        kept = LeaveOneOut.of(
            adapted, {number: told_without(adapted, number) for number in examples_to_try(adapted, most)}
        )
        keep_leave_one_out(store, gallery, kept)
    return kept


def told_without(adapted: AdaptedGallery, number: int) -> str:
    """The class that an example is taken for by a model that was not shown it."""
    others = [n for n in range(len(adapted.contents.examples)) if n != number]
    labels = np.array([adapted.contents.examples[n].class_name for n in others], dtype=np.str_)
    classifier = adapted.model.classifier.adapt(adapted.items[others], labels, adapted.features[others])
    found = classifier.classify(adapted.items[number : number + 1])
    return str(found.labels[found.probabilities[0].argmax()])


def kept_leave_one_out(store: GalleryStore, gallery: str, adapted: AdaptedGallery) -> LeaveOneOut | None:
    """What was found for this model and these examples before."""
    kept = _read(store, gallery, _note(adapted.model.name))
    return kept if kept is not None and kept.revision == adapted.contents.revision else None


def keep_leave_one_out(store: GalleryStore, gallery: str, found: LeaveOneOut) -> None:
    store.write_note(gallery, _note(found.model), json.dumps(asdict(found)).encode())


def change_since(store: GalleryStore, gallery: str, now: LeaveOneOut) -> Change | None:
    """Against the model with the highest version among the others, on the examples that both were asked about."""
    notes = [note for note in store.notes(gallery) if note.startswith(_NOTE) and note != _note(now.model)]
    others = [found for note in notes if (found := _read(store, gallery, note)) is not None]
    if not others:
        return None
    before = max(others, key=lambda found: _version(found.model))
    known = {(one.class_name, one.id): one.right for one in before.told}
    pairs = [(known[key], one.right) for one in now.told if (key := (one.class_name, one.id)) in known]
    if not pairs:
        return None
    accuracies = np.array(pairs, dtype=np.float64).mean(0).tolist()
    return Change(
        before=before.model,
        after=now.model,
        n=len(pairs),
        accuracy_before=accuracies[0],
        accuracy_after=accuracies[1],
    )


def _read(store: GalleryStore, gallery: str, note: str) -> LeaveOneOut | None:
    content = store.read_note(gallery, note)
    if content is None:
        return None
    kept: dict[str, Any] = json.loads(content)
    return LeaveOneOut(model=kept["model"], revision=kept["revision"], told=tuple(Told(**one) for one in kept["told"]))


def _note(model: str) -> str:
    return _NOTE + "".join(letter if letter.isalnum() else "-" for letter in model) + ".json"


def _version(model: str) -> int:
    number = model.rpartition("/")[2]
    return int(number) if number.isdecimal() else -1
