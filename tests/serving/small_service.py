"""A service on a small model that was never trained, and pictures that it tells apart: each class has a pattern."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from kshot.algorithms import ProtoNetConfig
from kshot.algorithms.unknown import UnknownRule
from kshot.backbones import Conv4Config
from kshot.data.items import ImageKind
from kshot.episodes.episode import EpisodeShape
from kshot.model import ModelConfig, SavedModel, build_learner
from kshot.serving.access import Keys
from kshot.serving.app import build_app
from kshot.serving.classifier import FewShotClassifier
from kshot.serving.files import FolderFiles
from kshot.serving.galleries import GalleryStore
from kshot.serving.gate import Gate
from kshot.serving.log import AnswerLog
from kshot.serving.served_model import ServedModel
from kshot.serving.service import Service
from kshot.serving.settings import ServiceSettings

GREY = ImageKind(image_size=16, channels=1)
PNG = {"Content-Type": "image/png"}


def saved_model(*, seed: int = 0, threshold: float | None = -1.0, width: int = 8) -> SavedModel:
    config = ModelConfig(
        algorithm=ProtoNetConfig(),
        backbone=Conv4Config(width=width),
        item=GREY,
        train_shape=EpisodeShape(n_way=3, k_shot=1, n_query=1),
    )
    rule = None if threshold is None else UnknownRule(score="nearest", thresholds=((1, threshold),))
    return SavedModel(learner=build_learner(config, init_seed=seed).eval(), config=config, unknown=rule)


def served_model(name: str = "models:/patterns/1", *, seed: int = 0) -> ServedModel:
    return ServedModel(name=name, version=name.rpartition("/")[2], classifier=FewShotClassifier(saved_model(seed=seed)))


def picture(pattern: int, number: int = 0, size: int = 16) -> bytes:
    """A PNG of one of the patterns with some noise of its own."""
    pixels = np.random.default_rng(pattern).integers(0, 256, (4, 4)).repeat(size // 4, 0).repeat(size // 4, 1)
    noise = np.random.default_rng(1000 * pattern + number).integers(-8, 9, (size, size))
    buffer = io.BytesIO()
    Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


class Source:
    """A registry of one alias, moved by the test."""

    def __init__(self, model: ServedModel) -> None:
        self.model, self.error = model, ""

    def version(self) -> str:
        return self.model.version

    def load(self) -> ServedModel:
        if self.error:
            raise RuntimeError(self.error)
        return self.model


@dataclass
class Small:
    client: TestClient
    gate: Gate
    service: Service
    source: Source
    store: GalleryStore
    folder: Path

    def show(self, gallery: str = "shapes", patterns: tuple[int, ...] = (1, 2), shots: int = 2) -> None:
        for pattern in patterns:
            for number in range(shots):
                path = f"/v1/galleries/{gallery}/classes/pattern {pattern}/examples"
                assert self.client.put(path, content=picture(pattern, number), headers=PNG).status_code == 201

    def ask(self, pattern: int, gallery: str = "shapes", number: int = 99) -> dict[str, object]:
        done = self.client.post(f"/v1/galleries/{gallery}/classify", content=picture(pattern, number), headers=PNG)
        assert done.status_code == 200, done.text
        answer: dict[str, object] = done.json()["answers"][0]
        return answer


@contextmanager
def small_service(
    folder: Path,
    *,
    settings: ServiceSettings | None = None,
    keys: Keys | None = None,
    hosts: frozenset[bytes] = frozenset(),
    base_url: str = "http://localhost",
) -> Iterator[Small]:
    settings = settings or ServiceSettings()
    source = Source(served_model())
    store = GalleryStore(FolderFiles(folder / "galleries"))
    log = AnswerLog(folder / "answers", settings.log) if settings.log.keep else None
    service = Service(source, source.load(), store, settings, log)
    gate = build_app(service, keys or Keys(()), settings.limits, hosts)
    with TestClient(gate, base_url=base_url, raise_server_exceptions=False) as client:
        yield Small(client=client, gate=gate, service=service, source=source, store=store, folder=folder)
