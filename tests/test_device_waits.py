"""On a GPU the host only queues a training step: it draws, learns and updates without looking at a number."""

from typing import Any

import numpy as np
import pytest
import torch

from kshot.adam import Adam
from kshot.algorithms import ANILConfig, MAMLConfig, ProtoNetConfig
from kshot.backbones import Conv4Config
from kshot.datasets import PackedDataset
from kshot.episode import EpisodeShape
from kshot.episode_loader import EpisodeLoader, Gather, ResidentItems, image_gather
from kshot.live_lines import silent_lines
from kshot.sampling import ClassWeighted, SamplerConfig, Uniform, WithinGroup
from kshot.task_pool import SampledPool
from kshot.training import TrainingJob, TrainingSettings, training_step
from tests.device_waits import WaitError, as_on_a_device
from tests.tiny_dataset import tiny_dataset
from tests.training_fakes import NoCheckpoints

SHAPE = EpisodeShape(n_way=3, k_shot=1, n_query=2)
CPU = torch.device("cpu")
LEARNERS = [ProtoNetConfig(), MAMLConfig(inner_steps=2), MAMLConfig(first_order=True), ANILConfig()]
SAMPLERS = [Uniform(), ClassWeighted(), WithinGroup()]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    tiny = tiny_dataset(n_classes=5, n_images=4)
    tiny.rotations = (0, 90, 180, 270)
    return PackedDataset.open(tiny.write(tmp_path_factory.mktemp("device") / "tiny"))


def job(dataset: PackedDataset, config: Any, sampler: SamplerConfig, gather: Gather) -> TrainingJob:
    torch.manual_seed(0)
    backbone = Conv4Config(width=8).build(channels=1, image_size=dataset.item.image_size)
    table = dataset.class_table("meta_train")
    pool = SampledPool.of_split(table, SHAPE, sampler, seed=1, split="meta_train")
    loader = EpisodeLoader.of_training(pool, gather)
    return TrainingJob(
        learner=config.build(backbone, n_features=backbone.n_features, train_way=SHAPE.n_way),
        train=loader,
        val=loader,
        val_pool=pool.freeze(2),
        settings=TrainingSettings(n_steps=2, episodes_per_step=2),
        checkpoints=NoCheckpoints(),
        lines=silent_lines(),
    )


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
@pytest.mark.parametrize("config", LEARNERS, ids=["protonet", "maml", "first-order", "anil"])
def test_a_step_is_queued_without_waiting_for_the_device(
    dataset: PackedDataset, config: Any, sampler: SamplerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = job(dataset, config, sampler, ResidentItems(dataset, CPU))
    optimizer = Adam(training.learner.parameters())
    monkeypatch.setattr("kshot.episode._check_labelled", lambda *_: None)  # looks at labels on the CPU only
    with as_on_a_device(on_host=[optimizer.state()["step"]]):
        outcomes = [training_step(training, optimizer, step) for step in range(2)]
    beside = torch.stack(outcomes)
    on_host = job(dataset, config, sampler, image_gather(dataset, CPU))
    optimizer = Adam(on_host.learner.parameters())
    assert torch.equal(beside, torch.stack([training_step(on_host, optimizer, step) for step in range(2)]))


def test_drawing_on_the_host_would_wait(dataset: PackedDataset) -> None:
    training = job(dataset, ProtoNetConfig(), Uniform(), image_gather(dataset, CPU))
    optimizer = Adam(training.learner.parameters())
    with as_on_a_device(on_host=[optimizer.state()["step"]]), pytest.raises(WaitError, match="array of the host"):
        training_step(training, optimizer, 0)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: bool(x.all()),
        lambda x: x.numpy(),
        lambda x: x + torch.from_numpy(np.ones(3)),
    ],
    ids=["item", "mask", "nonzero", "bool", "numpy", "copy"],
)
def test_what_waits_is_noticed(wait: Any) -> None:
    with as_on_a_device(on_host=[]), pytest.raises(WaitError):
        wait(torch.ones(3))
