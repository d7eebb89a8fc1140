"""Norms other than that of batches: by the equations of their papers, and how learners use them."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from kshot.algorithms import MAMLConfig, MAMLPlusPlusConfig, ProtoNetConfig, RelationConfig, TIMConfig
from kshot.algorithms.answering import NON_TRANSDUCTIVE, normalization_mode, normalization_modes, served
from kshot.algorithms.learner import MetaLearner, Problem, embed_jointly
from kshot.backbones import Conv4Config, ResNet12Config
from kshot.backbones.contract import norm_parameters, recorded_statistics
from kshot.backbones.layers.norm import ItemNorm, NormName, TaskNorm, build_norm
from kshot.data.items import ImageKind
from kshot.episodes.episode import EpisodeBatch
from kshot.episodes.loader import EpisodeLoader
from kshot.training.loop import TrainingJob, TrainingSettings, run_training
from kshot.training.objectives import Episodic
from tests.toy_episodes import SHAPE, image_pools
from tests.training.fakes import NoCheckpoints

ITEM = ImageKind(image_size=16, channels=1)
PROBLEM = Problem(train_shape=SHAPE, n_train_classes=8)
NAMES = get_args(get_args(NormName)[0])
OTHERS = [name for name in NAMES if name != "batch"]
EPS = 1e-5


@pytest.fixture
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def maps(seed: int, n: int = 6, channels: int = 4) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, 3, 5, generator=draw, dtype=torch.float64) * 2 + 1


def randomised(norm: Any, seed: int) -> Any:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
        if isinstance(norm, TaskNorm):
            norm.slope.mul_(0.2)
    return norm


def of_task(norm: TaskNorm, x: Tensor, n_support: int) -> Tensor:
    """Section 4 of the paper for TaskNorm-I, item by item and channel by channel."""
    share = 1 / (1 + torch.exp(-(norm.slope * n_support + norm.offset)))
    found = torch.empty_like(x)
    for c in range(x.shape[1]):
        context = x[:n_support, c].flatten()
        mean = context.mean()
        var = ((context - mean) ** 2).mean()
        for b in range(len(x)):
            own = x[b, c].flatten()
            own_mean = own.mean()
            own_var = ((own - own_mean) ** 2).mean()
            both = share * mean + (1 - share) * own_mean
            spread = share * (var + (mean - both) ** 2) + (1 - share) * (own_var + (own_mean - both) ** 2)
            found[b, c] = norm.weight[c] * (x[b, c] - both) / (spread + EPS).sqrt() + norm.bias[c]
    return found


def of_item(norm: ItemNorm, x: Tensor) -> Tensor:
    """Equations 1 to 7 of Wu and He, group by group."""
    size = x.shape[1] // norm.n_groups
    found = torch.empty_like(x)
    for b in range(len(x)):
        for first in range(0, x.shape[1], size):
            part = x[b, first : first + size]
            mean, var = part.mean(), ((part - part.mean()) ** 2).mean()
            for c in range(first, first + size):
                found[b, c] = norm.weight[c] * (x[b, c] - mean) / (var + EPS).sqrt() + norm.bias[c]
    return found


def test_task_norm_is_the_papers_equations(double_precision: None) -> None:
    for seed in range(5):
        norm, x = randomised(TaskNorm(4), seed), maps(seed)
        for n_support in (1, 4, 6):
            torch.testing.assert_close(norm(x, n_support), of_task(norm, x, n_support))


@pytest.mark.parametrize("n_groups", [1, 2, 4])
def test_norms_of_items_are_the_papers_equations(double_precision: None, n_groups: int) -> None:
    for seed in range(5):
        norm, x = randomised(ItemNorm(4, n_groups), seed), maps(seed)
        for n_reference in (None, 2, 6):
            torch.testing.assert_close(norm(x, n_reference), of_item(norm, x))


def test_a_recorded_support_set_stands_for_itself_with_its_size(double_precision: None) -> None:
    for seed in range(5):
        norm, x = randomised(TaskNorm(4), seed), maps(seed)
        with recorded_statistics(norm) as statistics:
            norm(x[:4], 4)
        assert statistics()["population_size"] == 4
        torch.testing.assert_close(functional_call(norm, statistics(), (x[4:], None)), norm(x, 4)[4:])


def test_the_groups_of_channels_are_as_many_as_32_at_most() -> None:
    groups = {n: build_norm("group", n) for n in (64, 160, 8, 3)}
    assert {n: norm.n_groups for n, norm in groups.items() if isinstance(norm, ItemNorm)} == {
        64: 32,
        160: 32,
        8: 8,
        3: 1,
    }


@pytest.mark.parametrize("name", OTHERS)
def test_conv4_equals_the_textbook_order_of_layers(name: NormName, kernels: str) -> None:
    torch.manual_seed(0)
    network = Conv4Config(width=16, norm=name).build(ITEM)
    x = torch.rand(6, 1, 16, 16)
    expected = x
    for convolution, norm in zip(network.convolutions, network.norms, strict=True):
        y = F.conv2d(expected, convolution.weight, padding=1).double()
        y = of_task(norm, y, 4) if isinstance(norm, TaskNorm) else of_item(norm, y)
        expected = F.relu(F.max_pool2d(y.float(), 2))
    torch.testing.assert_close(network(x, 4), expected.flatten(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", OTHERS)
def test_episodes_side_by_side_are_the_episodes_one_by_one(name: NormName) -> None:
    network = Conv4Config(width=8, norm=name).build(ITEM)
    draw = torch.Generator().manual_seed(1)
    weights = {key: torch.randn(3, *weight.shape, generator=draw) * 0.3 for key, weight in network.named_parameters()}
    x = torch.rand(3, 5, 1, 16, 16, generator=draw)
    alone = [functional_call(network, {key: w[i] for key, w in weights.items()}, (x[i], 5)) for i in range(3)]
    torch.testing.assert_close(network.forward_each(weights, x, 5), torch.stack(alone))


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    "config", [Conv4Config(width=8), ResNet12Config(widths=(8, 8, 8, 16))], ids=["conv4", "resnet12"]
)
def test_scales_and_shifts_are_found_whatever_the_norm(config: Any, name: NormName) -> None:
    batch, other = (type(config)(**{**vars(config), "norm": norm}).build(ITEM) for norm in ("batch", name))
    assert set(norm_parameters(batch)) <= set(norm_parameters(other))
    extra = {key.rpartition(".")[2] for key in set(norm_parameters(other)) - set(norm_parameters(batch))}
    assert extra == ({"slope", "offset"} if name == "task" else set())


def learner_on(config: Any, name: NormName) -> Any:
    torch.manual_seed(0)
    learner = config.build(Conv4Config(width=8, norm=name).build(ITEM), PROBLEM)
    with torch.no_grad():  # so that the share of the support set depends on its size
        for key, parameter in learner.named_parameters():
            if key.endswith("slope"):
                parameter.fill_(0.1)
    return learner.eval()


def test_in_training_queries_are_normalised_by_the_support_set_alone() -> None:
    episodes = image_pools()[0].load(range(2))
    learner = learner_on(ProtoNetConfig(), "task")
    support, query = embed_jointly(learner.backbone, episodes)
    n_support = episodes.support_x.shape[1]
    both = torch.cat([episodes.support_x, episodes.query_x], dim=1)
    expected = torch.stack([learner.backbone(items, n_support) for items in both])
    torch.testing.assert_close(torch.cat([support, query], dim=1), expected)
    batch = learner_on(ProtoNetConfig(), "batch").backbone
    torch.testing.assert_close(embed_jointly(batch, episodes)[1][0], batch(both[0], len(both[0]))[n_support:])


@pytest.mark.parametrize("config", [ProtoNetConfig(), RelationConfig()], ids=lambda config: config.name)
def test_after_training_too_and_as_in_training(config: Any) -> None:
    """So the loss of training is that of what is served."""
    learner = learner_on(config, "task")
    episodes = image_pools()[0].load(range(3))
    with torch.no_grad():
        in_use = served(learner)
        logits = in_use.classify(in_use.adapt(episodes.support), episodes.query_x)
        losses = F.cross_entropy(logits.flatten(0, 1), episodes.query_y.flatten(), reduction="none").view(3, -1).mean(1)
        torch.testing.assert_close(losses, learner.meta_loss(episodes), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    "config", [ProtoNetConfig(), TIMConfig(), MAMLConfig(inner_lr=0.05, eval_inner_steps=2)], ids=lambda c: c.name
)
def test_the_mode_that_is_served_depends_on_no_other_query(config: Any, name: NormName) -> None:
    in_use = served(learner_on(config, name))
    assert normalization_mode(in_use) == NON_TRANSDUCTIVE
    episodes = image_pools()[0].load(range(2))
    with torch.no_grad():
        adapted = in_use.adapt(episodes.support)
        together = in_use.classify(adapted, episodes.query_x)
        alone = [in_use.classify(adapted, episodes.query_x[:, i : i + 1]) for i in range(together.shape[1])]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), atol=1e-4, rtol=1e-4)


def test_another_support_set_changes_the_features_of_a_query() -> None:
    """Which is what distinguishes it from statistics of the training."""
    learner = learner_on(ProtoNetConfig(), "task")
    episodes = image_pools()[0].load(range(2))
    in_use = served(learner)
    first, second = (EpisodeBatch(**{**vars(e), "query_x": episodes.query_x[:1]}) for e in episodes.one_by_one())
    with torch.no_grad():
        found = [
            functional_call(learner.backbone, s, (first.query_x[0], None))
            for e in (first, second)
            for s in in_use.adapt(e.support).statistics
        ]
    assert not torch.allclose(found[0], found[1], atol=1e-3)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    "config",
    [
        ProtoNetConfig(),
        MAMLConfig(query_statistics=False, inner_lr=0.05, eval_inner_steps=2),
        MAMLPlusPlusConfig(query_statistics=False, inner_lr=0.05, inner_steps=2),
    ],
    ids=lambda config: config.name,
)
def test_learners_train_and_learn_with_every_norm(config: Any, name: NormName) -> None:
    learner = learner_on(config, name)
    assert isinstance(learner, MetaLearner)
    loader, pool, gather = image_pools()
    before = {key: weight.detach().clone() for key, weight in learner.named_parameters()}
    held_out = EpisodeLoader(pool=pool, gather=gather).load(range(8))
    start = float(learner.meta_loss(held_out).mean().detach())
    settings = TrainingSettings(n_steps=60, episodes_per_step=2, outer_lr=0.005, validate_every=60)
    job = TrainingJob(
        objective=Episodic(learner=learner, train=loader, val_pool=pool), settings=settings, checkpoints=NoCheckpoints()
    )
    run_training(job)
    assert all(not torch.equal(before[key], weight) for key, weight in learner.named_parameters())
    assert float(learner.meta_loss(held_out).mean().detach()) < 0.9 * start


def test_the_modes_of_a_learner_are_the_same_ones_with_every_norm() -> None:
    for config in (ProtoNetConfig(), MAMLConfig(), TIMConfig()):
        modes = {name: tuple(normalization_modes(learner_on(config, name))) for name in NAMES}
        assert len(set(modes.values())) == 1
