"""Activations that are computed again: the same weights to the bit, and less memory."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kshot.algorithms import ANILConfig, LinearProbeConfig, MAMLConfig, ProtoNetConfig
from kshot.algorithms.learner import MetaLearner, TransferLearner
from kshot.backbones import Conv4Config, MLPConfig, ResNet12Config, TimmConfig, TorchvisionConfig
from kshot.backbones.contract import drawing
from kshot.backbones.layers.adopted import Adopted
from kshot.backbones.layers.native import native_library, use_native_kernels
from kshot.backbones.layers.recompute import blocks, recomputation
from kshot.data.items import ImageKind
from kshot.episodes.episode import EpisodeShape
from kshot.episodes.loader import EpisodeLoader
from kshot.episodes.pools import MixedShapes
from kshot.errors import ConfigError
from kshot.model import ModelConfig, build_learner
from kshot.seeding import stream_key
from kshot.training.fit import check_recomputation
from kshot.training.loop import TrainingJob, TrainingSettings, run_training
from kshot.training.memory import kept_bytes
from kshot.training.objectives import Episodic
from tests.toy_episodes import SHAPE, image_pools
from tests.training.fakes import NoCheckpoints

ITEM = ImageKind(image_size=16, channels=1)
CONV4 = Conv4Config(width=16)
RESNET12 = ResNet12Config(widths=(4, 8, 8, 8), drop_rate=0.3, drop_block=2)
TIMM = TimmConfig(model="test_efficientnet", input_size=32)
VIT = TimmConfig(model="test_vit", input_size=32)
TORCHVISION = TorchvisionConfig(model="resnet18", input_size=32)
PROTONET, MAML = ProtoNetConfig(), MAMLConfig(inner_lr=0.05, inner_steps=2)


@pytest.fixture(autouse=True, params=[False, True], ids=["torch", "native"])
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param and not native_library().exists():
        pytest.skip("native kernels are not built here")
    use_native_kernels(request.param)
    yield
    use_native_kernels(False)


def learner_of(algorithm: Any, backbone: Any) -> Any:
    config = ModelConfig(algorithm=algorithm, backbone=backbone, item=ITEM, train_shape=SHAPE, n_train_classes=8)
    return build_learner(config)


def trained(algorithm: Any, backbone: Any, *, again: bool) -> dict[str, Tensor]:
    learner = learner_of(algorithm, backbone)
    train, val, _ = image_pools()
    job = TrainingJob(
        objective=Episodic(learner=learner, train=train, val_pool=val),
        settings=TrainingSettings(n_steps=3, episodes_per_step=2, validate_every=3),
        checkpoints=NoCheckpoints(),
    )
    with recomputation(again):
        run_training(job)
    weights: dict[str, Tensor] = learner.state_dict()
    return weights


@pytest.mark.parametrize(
    ("algorithm", "backbone"),
    [
        (PROTONET, CONV4),
        (PROTONET, RESNET12),
        (PROTONET, TIMM),
        (PROTONET, VIT),
        (PROTONET, TORCHVISION),
        (ANILConfig(), CONV4),
        (MAML, CONV4),
        (MAMLConfig(query_statistics=False), CONV4),
        (MAML, RESNET12),
        (MAMLConfig(first_order=True), TIMM),
        (MAML, TIMM),
    ],
    ids=lambda config: getattr(config, "model", config.name),
)
def test_weights_are_the_same_to_the_bit(algorithm: Any, backbone: Any) -> None:
    plain, again = (trained(algorithm, backbone, again=wanted) for wanted in (False, True))
    assert all(torch.equal(tensor, again[name]) for name, tensor in plain.items())


def test_noise_is_drawn_again_as_it_was() -> None:
    found = []
    for wanted in (False, True):
        learner: TransferLearner[Any] = learner_of(LinearProbeConfig(), RESNET12).train()
        items = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(1))
        with recomputation(wanted):
            with drawing(7):
                losses = [learner.class_logits(items).logsumexp(1).sum() for _ in range(2)]
            found.append(torch.autograd.grad(losses[0] + losses[1], list(learner.parameters())))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    with drawing(8):
        other = learner.class_logits(items).logsumexp(1).sum()
    assert not torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], other)


@pytest.mark.parametrize(
    ("backbone", "factor"),
    [(CONV4, 1.1), (RESNET12, 1.6), (VIT, 4.5), (TIMM, 1.6)],
    ids=lambda one: getattr(one, "model", None) or getattr(one, "name", one),
)
def test_less_is_kept(backbone: Any, factor: float) -> None:
    """The more equal blocks, the less; of a pyramid, the first block has most of the activations."""
    learner: MetaLearner[Any] = learner_of(PROTONET, backbone).train()
    train, _, _ = image_pools(EpisodeShape(n_way=8, k_shot=2, n_query=6))
    episode = train.load(range(1))
    of_weights = sum(parameter.numel() * 4 for parameter in learner.parameters())

    def kept(wanted: bool) -> int:
        with recomputation(wanted):
            return kept_bytes(lambda: learner.meta_loss(episode)) - of_weights

    assert factor * kept(True) < kept(False)


def test_what_is_counted_is_what_autograd_holds() -> None:
    """Of a network of equal blocks: what each is given, and what one of them keeps besides."""
    network = Adopted(nn.Sequential(*(_Block() for _ in range(6))), torch.zeros(1, 10)).train()
    items = torch.rand(100, 10, requires_grad=True)
    of_features, of_weights = 100 * 10 * 4, 10 * 10 * 4
    with recomputation(True):
        assert kept_bytes(lambda: network(items, None).sum()) == (6 + 2) * of_features + 2 * of_weights


def test_the_largest_of_several_shapes_is_counted() -> None:
    small, _, _ = image_pools(SHAPE)
    large, _, _ = image_pools(EpisodeShape(n_way=8, k_shot=2, n_query=6))
    learner = learner_of(PROTONET, CONV4).train()
    _, val, _ = image_pools()

    def counted(*loaders: EpisodeLoader) -> int:
        pool = MixedShapes([loader.pool for loader in loaders], 1, stream_key(1, "shapes"))
        return Episodic(learner=learner, train=replace(small, pool=pool), val_pool=val).needed_bytes(1)

    assert counted(small, large) == counted(large, small) == counted(large) > counted(small)


class _Block(nn.Module):
    """Keeps its input, which is that of its first layer too, and the results of its two sigmoids."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 10), nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.second(self.first(x).sigmoid()).sigmoid()


def test_a_network_is_left_as_it_was() -> None:
    backbone = learner_of(PROTONET, TIMM).backbone.train()
    with recomputation(True):
        backbone(torch.rand(4, 1, 16, 16), 4)
    assert backbone.recomputes
    assert not any("forward" in block.__dict__ for block in blocks(backbone.network))


def test_nothing_is_computed_again_outside_of_training() -> None:
    learner = learner_of(PROTONET, CONV4).eval()
    with recomputation(True):
        features = learner.backbone(torch.rand(4, 1, 16, 16), None)
    held = kept_bytes(lambda: learner.backbone(torch.rand(4, 1, 16, 16), None))
    assert features.grad_fn is not None
    assert held > 4 * 16 * 16 * 16 * 4


def test_a_backbone_without_blocks_is_refused() -> None:
    with recomputation(True):
        check_recomputation(learner_of(PROTONET, CONV4).backbone)
        with pytest.raises(
            ConfigError, match=r"process\.recompute is true, and the backbone has no blocks .*next: set"
        ):
            check_recomputation(learner_of(PROTONET, MLPConfig()).backbone)
    check_recomputation(learner_of(PROTONET, MLPConfig()).backbone)
