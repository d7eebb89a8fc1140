"""A service, without HTTP: one model, many galleries, one inference at a time.

Shapes: Q query items of a request, N classes.
"""

import asyncio
import logging
import struct
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kshot.data.items import ImageKind
from kshot.data.items.contract import ItemKind
from kshot.data.items.formats import open_checked
from kshot.errors import DataError, EpisodeError, KshotError
from kshot.serving.adapted import AdaptedGallery, Memory, adapt_gallery
from kshot.serving.galleries import Contents, Example, GalleryStore
from kshot.serving.leave_one_out import (
    Change,
    LeaveOneOut,
    change_since,
    examples_to_try,
    keep_leave_one_out,
    kept_leave_one_out,
    told_without,
)
from kshot.serving.log import AnswerLog, LoggedAnswer
from kshot.serving.problems import ProblemError
from kshot.serving.served_model import ModelSource, ServedModel
from kshot.serving.settings import ServiceSettings
from kshot.serving.slot import Slot

_LOGGER = logging.getLogger("kshot.service")
_MIB = 2**20
_PIXELS = 10**6
_PNG_HEADER, _PNG_SIZE_END = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", 24
_RETRY_S = 60.0  # after a version that could not be served


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The example of the gallery whose features are nearest."""

    id: str
    class_name: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """For one item. `class_name` is the likeliest class; `unknown` says that it is likely none of them.

    `known` is the score of that, and below `threshold` an item is unknown; None where the model cannot tell.
    """

    class_name: str
    probability: float
    probabilities: dict[str, float]
    unknown: bool | None
    known: float
    threshold: float | None
    nearest: Nearest | None
    id: str = ""


@dataclass(frozen=True, kw_only=True)
class Answered:
    model: ServedModel
    answers: tuple[Answer, ...]


@dataclass
class _Looked:
    """When a gallery was looked at last, and what its revision was."""

    at: float = -1e9
    revision: str = ""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Service:
    """What the routes call. All methods run in one event loop; `model` changes between two of them."""

    def __init__(
        self,
        source: ModelSource,
        model: ServedModel,
        store: GalleryStore,
        settings: ServiceSettings,
        log: AnswerLog | None,
    ) -> None:
        self.model, self.store, self.settings, self.log = model, store, settings, log
        limits = settings.limits
        self.slot = Slot(max_waiting=limits.waiting, max_together=settings.together)
        self.adapted: Memory[AdaptedGallery] = Memory(settings.adapted_mib * _MIB)
        self.trouble = ""
        """Why the version that is wanted is not the one that answers; "" where it is."""
        self._source, self._wanted = source, source.version()
        self._decoded: Memory[NDArray[Any]] = Memory(settings.items_mib * _MIB)
        self._looked: defaultdict[str, _Looked] = defaultdict(_Looked)

    @property
    def item(self) -> ItemKind:
        return self.model.classifier.item

    # answers

    async def classify(self, gallery: str, contents: Sequence[bytes]) -> Answered:
        """Raises UnknownNameError, DataError for a picture that cannot be read, EpisodeError below 2 classes."""
        start = time.perf_counter()
        adapted = await self.adapted_to(gallery)
        work = partial(_classify, adapted, self.settings.limits.megapixels)
        answers, features = await self.slot.run_together((gallery, id(adapted)), work, contents)
        answers = tuple(answers)
        if self.log is not None:
            answers = self.log.answered(
                LoggedAnswer(
                    gallery=gallery,
                    model=adapted.model.name,
                    answers=answers,
                    features=features,
                    contents=contents,
                    latency_ms=1000 * (time.perf_counter() - start),
                )
            )
        return Answered(model=adapted.model, answers=answers)

    async def classify_once(self, support: Sequence[tuple[str, bytes]], contents: Sequence[bytes]) -> Answered:
        """The same with the examples (class, picture) in the request; nothing of it is kept."""
        model = self.model
        answers = await self.slot.run(
            partial(_classify_once, model, self.settings.limits.megapixels, support, contents)
        )
        return Answered(model=model, answers=tuple(answers))

    async def adapted_to(self, gallery: str) -> AdaptedGallery:
        """The model as it has learned the gallery as it is now."""
        looked = self._looked[gallery]
        async with looked.lock:
            revision = await self._revision(gallery, looked)
            known = self.adapted.get(gallery)
            model = self.model
            if known is not None and known.contents.revision == revision and known.model is model:
                return known
            contents = await self.contents(gallery)
            work = partial(adapt_gallery, model, self.store, gallery, contents, decoded=self._decoded, before=known)
            adapted = await self.slot.run(work)
            self.adapted.put(gallery, adapted, adapted.n_bytes)
            looked.revision = contents.revision
            return adapted

    # galleries

    async def contents(self, gallery: str) -> Contents:
        return await asyncio.to_thread(self.store.contents, gallery)

    async def galleries(self) -> list[str]:
        return await asyncio.to_thread(self.store.names)

    async def create(self, gallery: str) -> bool:
        names = await self.galleries()
        if gallery not in names:
            _check("galleries", len(names) + 1, self.settings.limits.galleries)
        return await asyncio.to_thread(self.store.create, gallery)

    async def add(self, gallery: str, class_name: str, pictures: Sequence[bytes]) -> list[Example]:
        """The gallery is made where it is not there. Done when they are stored."""
        await self.create(gallery)
        classes = (await self.contents(gallery)).classes
        limits = self.settings.limits
        _check("classes of a gallery", len({*classes, class_name}), limits.classes)
        _check("examples of a gallery", sum(map(len, classes.values())) + len(pictures), limits.examples)
        for picture in pictures:
            check_size(self.item, picture, limits.megapixels)
        found = await asyncio.to_thread(self.store.add, gallery, class_name, pictures, self.item)
        self._forget(gallery)
        return found

    async def remove_class(self, gallery: str, class_name: str) -> int:
        """How many examples it had. Raises UnknownNameError for a class that is not there."""
        examples = (await self.contents(gallery)).of(class_name)
        await asyncio.to_thread(self.store.remove, gallery, examples)
        self._forget(gallery)
        return len(examples)

    async def remove_example(self, gallery: str, class_name: str, id_: str) -> None:
        example = (await self.contents(gallery)).example(class_name, id_)
        await asyncio.to_thread(self.store.remove, gallery, [example])
        self._forget(gallery)

    async def rename_class(self, gallery: str, before: str, after: str) -> None:
        await asyncio.to_thread(self.store.rename_class, gallery, before, after)
        self._forget(gallery)

    async def delete(self, gallery: str) -> None:
        await asyncio.to_thread(self.store.delete, gallery)
        self.adapted.forget(gallery)
        self._looked.pop(gallery, None)

    async def picture(self, gallery: str, class_name: str, id_: str) -> tuple[Example, bytes]:
        example = (await self.contents(gallery)).example(class_name, id_)
        (content,) = await asyncio.to_thread(self.store.read, gallery, [example])
        return example, content

    async def leave_one_out(self, gallery: str) -> LeaveOneOut:
        """How often an example is known by the others. Requests get their turn between two examples."""
        return await self._left_out(gallery, await self.adapted_to(gallery))

    async def _left_out(self, gallery: str, adapted: AdaptedGallery) -> LeaveOneOut:
        kept = await asyncio.to_thread(kept_leave_one_out, self.store, gallery, adapted)
        if kept is not None:
            return kept
        told = {}
        for number in examples_to_try(adapted, self.settings.leave_one_out):
            told[number] = await self.slot.run(partial(told_without, adapted, number))
        found = LeaveOneOut.of(adapted, told)
        await asyncio.to_thread(keep_leave_one_out, self.store, gallery, found)
        return found

    async def change(self, gallery: str) -> Change | None:
        """What the last other model knew of the examples, against this one; None where none was asked."""
        now = await self.leave_one_out(gallery)
        return await asyncio.to_thread(change_since, self.store, gallery, now)

    # the model

    async def watch(self) -> None:
        """Serve the version that is wanted, from now on: asked every `watch_s`; never ends."""
        refused = ("", 0.0)
        while True:
            await asyncio.sleep(self.settings.watch_s)
            try:
                wanted = await asyncio.to_thread(self._source.version)
                if wanted == self._wanted or (wanted == refused[0] and time.monotonic() < refused[1]):
                    continue
                refused = wanted, time.monotonic() + _RETRY_S
                changed = await self._change()
                self._wanted, self.trouble = wanted, ""
                await self._compare(changed)
            except Exception as error:  # whatever it is, the version before goes on to answer
                self.trouble = str(error).splitlines()[0] if str(error) else type(error).__name__
                _LOGGER.warning("the model stays %s: %s", self.model.name, self.trouble)

    async def _change(self) -> dict[str, tuple[AdaptedGallery | None, AdaptedGallery]]:
        """Load the model beside the one that answers, let it learn the galleries in use, and put it in its place.

        These galleries, as the model before and this one know them.
        """
        before, model = self.model, await asyncio.to_thread(self._source.load)
        ready = {}
        for gallery in self.adapted.names():
            try:
                contents = await self.contents(gallery)
                work = partial(adapt_gallery, model, self.store, gallery, contents, decoded=self._decoded)
                ready[gallery] = await self.slot.run(work)
            except (KshotError, ProblemError) as error:
                _LOGGER.warning("gallery %s is adapted when it is asked next: %s", gallery, error)
        used = {gallery: self.adapted.get(gallery) for gallery in ready}
        self.model = model
        for gallery, adapted in ready.items():
            self.adapted.put(gallery, adapted, adapted.n_bytes)
        _LOGGER.info("%s answers, in place of %s", model.name, before.name)
        return {gallery: (used[gallery], adapted) for gallery, adapted in ready.items()}

    async def _compare(self, changed: dict[str, tuple[AdaptedGallery | None, AdaptedGallery]]) -> None:
        """Find out how well both models know the examples, for whoever asks."""
        for gallery, models in changed.items():
            try:
                for adapted in models:
                    if adapted is not None:
                        await self._left_out(gallery, adapted)
            except (KshotError, ProblemError, OSError) as error:
                _LOGGER.warning("the models are not compared on gallery %s: %s", gallery, error)

    async def _revision(self, gallery: str, looked: _Looked) -> str:
        if self.store.near:
            return self.store.revision(gallery)
        now = time.monotonic()
        if now - looked.at >= self.settings.refresh_s:
            looked.revision = await asyncio.to_thread(self.store.revision, gallery)
            looked.at = now
        return looked.revision

    def _forget(self, gallery: str) -> None:
        """Look again at the next request."""
        self._looked[gallery].at = -1e9


def _check(what: str, found: int, most: int) -> None:
    if found > most:
        raise ProblemError(422, f"too many {what}", found=f"{found} {what}", needed=f"at most {most}")


def check_size(item: ItemKind, content: bytes, megapixels: float) -> None:
    """Raise a 413 problem for a picture of too many pixels, by its header alone."""
    if not isinstance(item, ImageKind):
        return
    width, height = _size_px(content)
    if width * height > megapixels * _PIXELS:
        raise ProblemError(
            413,
            "a picture is too large",
            found=f"a picture of {width}x{height} pixels",
            needed=f"at most {megapixels:g} million",
        )


def _size_px(content: bytes) -> tuple[int, int]:
    """Width and height by the header alone; of a PNG without opening it, which is most of the time of a small one."""
    if content[:16] == _PNG_HEADER and len(content) >= _PNG_SIZE_END:
        width, height = struct.unpack_from(">II", content, len(_PNG_HEADER))
        return width, height
    return open_checked(content).size


def read_pictures(item: ItemKind, contents: Sequence[bytes], megapixels: float) -> NDArray[Any]:
    """Items (Q, *item). Raises DataError, with the number of the first that cannot be read."""
    items = []
    for number, content in enumerate(contents, 1):
        check_size(item, content, megapixels)
        try:
            items.append(item.read(content).item)
        except DataError as error:
            raise DataError(f"item {number} of {len(contents)}: {error}") from error
    return np.stack(items)


def _classify(adapted: AdaptedGallery, megapixels: float, asked: list[Sequence[bytes]]) -> list[Any]:
    """For each request its answers and features, or the error of whoever sent what cannot be read."""
    item = adapted.classifier.item
    given: list[NDArray[Any] | Exception] = []
    for contents in asked:
        try:
            given.append(read_pictures(item, contents, megapixels))
        except (DataError, ProblemError) as error:
            given.append(error)
    arrays = [one for one in given if isinstance(one, np.ndarray)]
    if not arrays:
        return given
    found = adapted.look(np.concatenate(arrays))
    answers: list[Any] = []
    start = 0
    for one in given:
        if isinstance(one, Exception):
            answers.append(one)
            continue
        rows = range(start, start := start + len(one))
        answers.append(([_answer(adapted, found, row) for row in rows], found.features[rows.start : rows.stop]))
    return answers


def _answer(adapted: AdaptedGallery, found: Any, row: int) -> Answer:
    best = int(found.probabilities[row].argmax())
    known, threshold = float(found.known[row]), adapted.threshold
    near = adapted.contents.examples[int(found.nearest[row])] if adapted.contents.examples else None
    return Answer(
        class_name=str(found.labels[best]),
        probability=float(found.probabilities[row, best]),
        probabilities=dict(zip(found.labels.tolist(), found.probabilities[row].tolist(), strict=True)),
        unknown=None if threshold is None else known < threshold,
        known=known,
        threshold=threshold,
        nearest=None if near is None else Nearest(id=near.id, class_name=near.class_name),
    )


def _classify_once(
    model: ServedModel, megapixels: float, support: Sequence[tuple[str, bytes]], contents: Sequence[bytes]
) -> list[Answer]:
    labels = [label for label, _ in support]
    if len(set(labels)) < 2:
        raise EpisodeError(f"support is of {len(set(labels))} class; need at least 2 classes")
    item = model.classifier.item
    try:
        items = read_pictures(item, [content for _, content in support], megapixels)
    except DataError as error:
        raise DataError(f"support: {error}") from error
    features = model.classifier.features(items)
    contents_of = Contents(
        revision="",
        examples=tuple(Example(class_name=label, id=str(number), end="") for number, label in enumerate(labels)),
    )
    adapted = AdaptedGallery(
        model=model,
        contents=contents_of,
        classifier=model.classifier.adapt(items, np.array(labels, dtype=np.str_), features),
        items=items,
        features=features,
    )
    (answered,) = _classify(adapted, megapixels, [contents])
    if isinstance(answered, Exception):
        raise answered
    answers: list[Answer] = answered[0]
    return answers
