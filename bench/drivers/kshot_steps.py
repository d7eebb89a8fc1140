"""kshot's step of each workload, through the functions that its stages call."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from bench.measure import Noise, Part, Request
from bench.workloads import Shape, Workload
from kshot.algorithms import AlgorithmConfig, ANILConfig, Learner, MAMLConfig, ProtoNetConfig
from kshot.algorithms.learner import MetaLearner
from kshot.backbones import Conv4Config
from kshot.backbones.contract import calibrate
from kshot.data.class_table import ClassTable
from kshot.data.gather import Gather, item_gather
from kshot.data.items import AnyItemKind, ImageKind
from kshot.data.packed import PackedDataset
from kshot.episodes.episode import EpisodeShape
from kshot.episodes.loader import EpisodeLoader
from kshot.episodes.pools import SampledPool
from kshot.episodes.sampling import Uniform
from kshot.evaluation.scoring import score_episodes
from kshot.model import ModelConfig, build_learner
from kshot.runtime.lines import silent_lines
from kshot.runtime.workers import Workers, joined_workers
from kshot.training.loop import TrainingJob, TrainingSettings, TrainingState, training_step
from kshot.training.objectives import Episodic

_CALIBRATION_EPISODES = 16
SCORED_AT_ONCE = {"protonet": 1000, "maml": 64}  # episodes in one call


@dataclass(frozen=True, kw_only=True)
class Data:
    """Classes to draw from and the images of each."""

    item: AnyItemKind
    table: ClassTable
    gather: Gather

    def pool(self, shape: Shape) -> SampledPool:
        return SampledPool.of_split(self.table, _episode_shape(shape), Uniform(), seed=1, split="meta_train")

    def loader(self, shape: Shape) -> EpisodeLoader:
        return EpisodeLoader.of_training([self.pool(shape)], self.gather)


class NoiseImages:
    """Random pixels by index, made when first asked for."""

    def __init__(self, n_items: int, item: ImageKind) -> None:
        self.n_items = n_items
        self.item = item
        self._pixels: NDArray[np.uint8] | None = None

    def gather(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        if self._pixels is None:
            shape = (self.n_items, *self.item.shape)
            self._pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
        return self._pixels[indices]


class NoCheckpoints:
    def latest(self) -> TrainingState | None:
        return None

    def save(self, state: TrainingState) -> None:
        pass


@contextmanager
def prepared() -> Iterator[Callable[[Request], list[Part]]]:
    """`prepare` for this process, alone or as a worker of torchrun."""
    with joined_workers(torch.device("cpu")) as workers:
        yield partial(prepare, workers=workers)


def prepare(request: Request, *, workers: Workers | None = None) -> list[Part]:
    """The request's workload, one part for each of its shapes."""
    workload = request.workload
    data = _noise(request.noise) if request.noise else _meta_train(Path(request.dataset))
    return [_part(workload, shape, data, request, workers or Workers()) for shape in workload.shapes]


def _part(workload: Workload, shape: Shape, data: Data, request: Request, workers: Workers) -> Part:
    numbers = count()
    match workload.kind:
        case "train":
            job = training_job(workload, shape, data, request, workers, torch.device("cpu"))
            optimizer = job.new_optimizer()
            return Part(
                name=str(shape),
                step=lambda: training_step(job, optimizer, next(numbers)),
                episodes=workload.episodes,
            )
        case "evaluate":
            learner = _learner(workload, shape, data.item, request.width).eval()
            if learner.needs_population_statistics:
                episodes = data.loader(shape).load(range(_CALIBRATION_EPISODES))
                calibrate(learner.backbone, torch.cat([episodes.support_x, episodes.query_x], dim=1))
            frozen = data.pool(shape).freeze(SCORED_AT_ONCE[workload.algorithm])
            return Part(
                name=str(shape),
                step=lambda: score_episodes(learner, frozen.indices, data.gather),
                episodes=len(frozen),
            )
        case "sample":
            loader = data.loader(shape)
            return Part(
                name=str(shape), step=lambda: loader.load(_batch(workload, numbers)), episodes=workload.episodes
            )
        case "draw":
            pool = data.pool(shape)
            return Part(
                name=str(shape), step=lambda: pool.episodes(_batch(workload, numbers)), episodes=workload.episodes
            )
        case _:
            raise ValueError(f"kshot's driver has no workload of kind {workload.kind}")


def training_job(
    workload: Workload, shape: Shape, data: Data, request: Request, workers: Workers, device: torch.device
) -> TrainingJob:
    loader, learner = data.loader(shape), _learner(workload, shape, data.item, request.width)
    assert isinstance(learner, MetaLearner)
    return TrainingJob(
        objective=Episodic(learner=learner.to(device), train=loader, val_pool=data.pool(shape).freeze(2)),
        settings=TrainingSettings(
            n_steps=10**9,
            episodes_per_step=workload.episodes,
            outer_lr=1e-3,
            precision="bfloat16" if request.precision == "bfloat16" else "float32",
        ),
        checkpoints=NoCheckpoints(),
        workers=workers,
        lines=silent_lines(),
    )


def _learner(workload: Workload, shape: Shape, item: AnyItemKind, width: int) -> Learner[Any]:
    backbone = Conv4Config(width=width)
    train_shape = _episode_shape(shape)
    config = ModelConfig(algorithm=_algorithm(workload), backbone=backbone, item=item, train_shape=train_shape)
    return build_learner(config, init_seed=1)


def _algorithm(workload: Workload) -> AlgorithmConfig:
    steps = workload.inner_steps
    match workload.algorithm:
        case "protonet":
            return ProtoNetConfig()
        case "anil":
            return ANILConfig(inner_lr=0.4, inner_steps=steps, eval_inner_steps=steps)
        case "maml" | "fomaml":
            first_order = workload.algorithm == "fomaml"
            return MAMLConfig(inner_lr=0.4, inner_steps=steps, eval_inner_steps=steps, first_order=first_order)


def _batch(workload: Workload, numbers: Iterator[int]) -> range:
    first = next(numbers) * workload.episodes
    return range(first, first + workload.episodes)


def _episode_shape(shape: Shape) -> EpisodeShape:
    return EpisodeShape(n_way=shape.n_way, k_shot=shape.k_shot, n_query=shape.n_query)


def _meta_train(folder: Path) -> Data:
    dataset = PackedDataset.open(folder)
    gather = item_gather(dataset, torch.device("cpu"))
    return Data(item=dataset.item, table=dataset.class_table("meta_train"), gather=gather)


def _noise(noise: Noise) -> Data:
    item = ImageKind(image_size=noise.image_size, channels=1)
    class_ids = np.arange(noise.n_classes)
    labels = np.repeat(class_ids, noise.images_per_class)
    images = cast(PackedDataset, NoiseImages(len(labels), item))
    return Data(
        item=item,
        table=ClassTable.from_labels(labels, class_ids, np.zeros_like(class_ids)),
        gather=item_gather(images, torch.device("cpu")),
    )
