"""On a GPU the host only queues a training step: it draws, learns and updates without looking at a number."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from kshot.algorithms import (
    ANILConfig,
    BOILConfig,
    MAMLConfig,
    MAMLPlusPlusConfig,
    MetaSGDConfig,
    ProtoNetConfig,
    R2D2Config,
    ReptileConfig,
)
from kshot.algorithms.learner import Problem
from kshot.backbones import Conv4Config
from kshot.data.gather import ResidentItems, item_gather
from kshot.data.items import ImageKind
from kshot.data.packed import PackedDataset
from kshot.episodes.episode import EpisodeShape
from kshot.episodes.loader import EpisodeLoader
from kshot.episodes.pools import SampledPool
from kshot.episodes.sampling import ClassWeighted, SamplerConfig, Uniform, WithinGroup
from kshot.runtime.lines import silent_lines
from kshot.training.loop import TrainingJob, TrainingSettings, training_step
from kshot.training.objectives import Episodic
from tests.device_waits import WaitError, as_on_a_device
from tests.tiny_dataset import SIZE_PX, tiny_dataset
from tests.training.fakes import NoCheckpoints

CPU = torch.device("cpu")
LEARNERS = {
    "protonet": ProtoNetConfig(),
    "maml": MAMLConfig(inner_steps=2),
    "first-order": MAMLConfig(first_order=True),
    "anil": ANILConfig(),
    "boil": BOILConfig(),
    "reptile": ReptileConfig(),
    "meta_sgd": MetaSGDConfig(),
    "mamlpp": MAMLPlusPlusConfig(inner_steps=2),
    "r2d2": R2D2Config(),
}
SAMPLERS = [Uniform(), ClassWeighted(), WithinGroup()]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    """Training classes of 4 to 14 images: two of each are the start of a sequence, four the smallest of keys."""
    tiny = tiny_dataset(n_classes=5, n_images=4)
    rng = np.random.default_rng(0)
    for class_name, more in zip(tiny.splits["meta_train"], (0, 10, 6, 0, 1), strict=True):
        tiny.append(rng.integers(0, 256, (more, SIZE_PX, SIZE_PX, 1), dtype=np.uint8), class_name)
    tiny.rotations = (0, 90, 180, 270)
    return PackedDataset.open(tiny.write(tmp_path_factory.mktemp("device") / "tiny"))


def job(
    dataset: PackedDataset,
    config: Any,
    *,
    beside: bool,
    sampler: SamplerConfig | None = None,
    n_query: int = 2,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> TrainingJob:
    """`beside`: with images and draws on the device, else on the host."""
    torch.manual_seed(0)
    shape = EpisodeShape(n_way=3, k_shot=1, n_query=n_query)
    backbone = Conv4Config(width=8).build(ImageKind(image_size=dataset.item.image_size, channels=1))
    table = dataset.class_table("meta_train")
    pool = SampledPool.of_split(table, shape, sampler or Uniform(), seed=1, split="meta_train")
    gather = ResidentItems(dataset, CPU) if beside else item_gather(dataset, CPU)
    loader = EpisodeLoader.of_training([pool], gather)
    return TrainingJob(
        objective=Episodic(
            learner=config.build(backbone, Problem(train_shape=shape, n_train_classes=None)),
            train=loader,
            val_pool=pool.freeze(2),
        ),
        settings=TrainingSettings(n_steps=2, episodes_per_step=2, precision=precision),
        checkpoints=NoCheckpoints(),
        lines=silent_lines(),
    )


def outcomes(training: TrainingJob, *, on_device: bool) -> Tensor:
    """Losses and norms of two steps; `on_device` refuses every look at a value."""
    optimizer = training.new_optimizer()
    with as_on_a_device(on_host=[optimizer.state()["step"]]) if on_device else nullcontext():
        return torch.stack([training_step(training, optimizer, step) for step in range(2)])


@pytest.fixture(autouse=True)
def labels_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of labels looks at them on the CPU only."""
    monkeypatch.setattr("kshot.episodes.episode._check_labelled", lambda *_: None)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", LEARNERS.values(), ids=LEARNERS)
def test_a_step_is_queued_without_a_look_at_a_value(
    dataset: PackedDataset, config: Any, precision: Literal["float32", "bfloat16"]
) -> None:
    beside = outcomes(job(dataset, config, beside=True, precision=precision), on_device=True)
    assert torch.equal(beside, outcomes(job(dataset, config, beside=False, precision=precision), on_device=False))


@pytest.mark.parametrize("n_query", [1, 3], ids=["items of a sequence", "items by keys"])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_every_way_to_draw_looks_at_no_value(dataset: PackedDataset, sampler: SamplerConfig, n_query: int) -> None:
    beside = job(dataset, ProtoNetConfig(), beside=True, sampler=sampler, n_query=n_query)
    on_host = job(dataset, ProtoNetConfig(), beside=False, sampler=sampler, n_query=n_query)
    assert torch.equal(outcomes(beside, on_device=True), outcomes(on_host, on_device=False))


def test_episodes_drawn_on_the_host_would_wait(dataset: PackedDataset) -> None:
    training = job(dataset, ProtoNetConfig(), beside=True)
    objective = training.objective
    assert isinstance(objective, Episodic)
    table, shape = dataset.class_table("meta_train"), objective.val_pool.shape
    on_host = SampledPool.of_split(table, shape, Uniform(), seed=1, split="meta_train")
    drawn_on_host = replace(objective, train=EpisodeLoader(pool=on_host, gather=objective.train.gather))
    with pytest.raises(WaitError, match="numbers of the host"):
        outcomes(replace(training, objective=drawn_on_host), on_device=True)


LOOKS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.all()),
    "mask": lambda x: x[x > 0],
    "masked write": lambda x: x.index_put_((x > 0,), torch.zeros(())),
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: x.unique(),
    "lengths": lambda x: x.repeat_interleave(x.long()),
    "allclose": lambda x: torch.allclose(x, x),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "numpy": lambda x: x.numpy(),
    "array": lambda x: x + torch.from_numpy(np.ones(3)),
    "scalar": lambda x: x + torch.tensor(2.0),
    "new": lambda x: x.new_tensor([1.0]),
    "list": lambda x: x[[0, 1]],
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_look_is_noticed(look: Callable[[Tensor], object]) -> None:
    with as_on_a_device(on_host=[]), pytest.raises(WaitError):
        look(torch.ones(3))


def test_what_needs_no_value_passes() -> None:
    with as_on_a_device(on_host=[]):
        x = torch.ones(3, 3)
        assert x.index_select(1, torch.arange(2)).repeat_interleave(2).to(torch.float64)[torch.arange(2)].shape == (2,)
