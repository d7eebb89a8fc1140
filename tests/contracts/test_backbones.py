"""What every backbone promises. A new name in `BackboneConfig` is tested here without a further line."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from kshot.backbones import BackboneConfig, Conv4Config, ModuleConfig, ResNet12Config, TimmConfig, TorchvisionConfig
from kshot.backbones.contract import (
    Backbone,
    calibrate,
    drawing,
    freeze,
    has_nothing_to_train,
    items_at_once,
    recorded_statistics,
)
from kshot.backbones.layers.adapter import AdapterConfig, LinearAdapter, NoAdapter, WithAdapter
from kshot.backbones.layers.adopted import Adopted, start_from
from kshot.backbones.layers.norm import NormName, ReferenceNorm
from kshot.backbones.resnet12 import drop_blocks
from kshot.data.items import ImageKind
from kshot.data.weights import PretrainedWeights, WeightsRecord
from kshot.errors import ConfigError

ITEM = ImageKind(image_size=16, channels=1)
RECORD = WeightsRecord(source="test", licence="", sha256="", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def plain_network() -> nn.Module:
    """A network as people write it: batch normalisation that is called with the items alone."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Conv2d(6, 4, 3),
        nn.BatchNorm2d(4),
    )


SMALL: dict[str, dict[str, Any]] = {
    "resnet12": {"widths": (8, 8, 8, 16)},
    "torchvision": {"model": "resnet18", "input_size": 64},
    "timm": {"model": "resnet10t", "input_size": 64},
    "module": {"make": f"{Path(__file__).parent / 'own_network.py'}:make"},
}
"""Settings with which a backbone is small, or can be built at all."""


def configs() -> list[Any]:
    return [config(**SMALL.get(config.name, {})) for config in get_args(get_args(BackboneConfig)[0])]


ADAPTERS = [config() for config in get_args(get_args(AdapterConfig)[0]) if config is not NoAdapter]
MAKERS: dict[str, Callable[[], Backbone]] = {
    **{config.name: (lambda config=config: built(config)) for config in configs()},
    **{
        f"{config.name} {norm} norm": (lambda config=config, norm=norm: built(with_norm(config, norm)))
        for config in configs()
        if isinstance(config, Conv4Config | ResNet12Config)
        for norm in get_args(get_args(NormName)[0])
        if norm != config.norm
    },
    "adopted": lambda: Adopted(plain_network(), items(1)),
    **{f"{adapter.name} adapter": (lambda adapter=adapter: adapted(adapter)) for adapter in ADAPTERS},
}
every_backbone = pytest.mark.parametrize("name", MAKERS)


def built(config: Any) -> Backbone:
    backbone: Backbone = config.build(ITEM)
    return backbone


def with_norm(config: Any, norm: str) -> Any:
    return type(config)(**{**vars(config), "norm": norm})


def adapted(config: Any) -> Backbone:
    backbone: Backbone = config.build(built(Conv4Config(width=8)))
    nn.init.normal_(list(backbone.parameters())[-1], std=0.1)  # those that add something add nothing at first
    return backbone


def made(name: str) -> Backbone:
    torch.manual_seed(0)
    return MAKERS[name]()


def items(n: int, seed: int = 1) -> Tensor:
    return torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


@every_backbone
def test_features_are_vectors_of_the_length_that_is_promised(name: str) -> None:
    backbone = made(name)
    features = backbone(items(5), 5)
    assert features.shape == (5, backbone.n_features)
    assert features.dtype == torch.float32
    if backbone.map_shape is not None:
        channels, height, width = backbone.map_shape
        assert channels * height * width == backbone.n_features


@every_backbone
def test_reference_items_alone_set_the_statistics(name: str) -> None:
    backbone = made(name)
    reference = items(4)
    queries = backbone(torch.cat([reference, items(3, seed=2)]), 4)[:4]
    others = backbone(torch.cat([reference, 9 * items(3, seed=3)]), 4)[:4]
    torch.testing.assert_close(queries, others)
    torch.testing.assert_close(queries, backbone(reference, 4), atol=1e-5, rtol=1e-4)


@every_backbone
def test_without_reference_each_item_is_embedded_alone(name: str) -> None:
    backbone = made(name).eval()
    calibrate(backbone, [items(8, seed=5), items(8, seed=6)])
    together = backbone(items(4), None)
    alone = torch.cat([backbone(one[None], None) for one in items(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@every_backbone
def test_a_call_under_other_weights_uses_them(name: str) -> None:
    backbone = made(name)
    weights = {key: torch.zeros_like(weight) for key, weight in backbone.named_parameters()}
    assert not functional_call(backbone, weights, (items(3), 3)).any()
    assert backbone(items(3), 3).any()


@every_backbone
def test_features_are_float32_also_under_autocast(name: str) -> None:
    backbone = made(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = backbone(items(4), 4)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, backbone(items(4), 4), atol=0.2, rtol=0.1)


@every_backbone
def test_the_state_survives_saving_and_loading(name: str, tmp_path: Path) -> None:
    backbone = made(name).eval()
    calibrate(backbone, [items(8, seed=5)])
    torch.save(backbone.state_dict(), tmp_path / "state")
    torch.manual_seed(9)
    other = MAKERS[name]().eval()
    assert not torch.equal(other(items(3), None), backbone(items(3), None))
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert torch.equal(other(items(3), None), backbone(items(3), None))


@every_backbone
def test_recorded_statistics_normalise_like_the_items_they_were_recorded_on(name: str) -> None:
    backbone = made(name).eval()
    reference, queries = items(6), items(3, seed=2)
    with recorded_statistics(backbone) as statistics:
        backbone(reference, len(reference))
    found = functional_call(backbone, statistics(), (queries, None))
    torch.testing.assert_close(found, backbone(torch.cat([reference, queries]), 6)[6:], atol=1e-4, rtol=1e-3)


@every_backbone
def test_a_frozen_backbone_has_nothing_to_train_and_keeps_its_statistics(name: str) -> None:
    backbone = freeze(made(name), "all")
    assert has_nothing_to_train(backbone)
    before = backbone(items(3), None)
    calibrate(backbone, [9 * items(8)])
    assert torch.equal(backbone(items(3), None), before)
    torch.testing.assert_close(backbone(items(3), 3), before, atol=1e-5, rtol=1e-4)


@every_backbone
def test_more_items_fit_into_more_memory_and_at_least_one_always(name: str) -> None:
    backbone = made(name)
    assert backbone.bytes_per_item >= 2 * 4 * 16 * 16
    assert items_at_once(backbone, 1) == 1
    assert items_at_once(backbone, 100 * backbone.bytes_per_item) == 100


def test_an_adopted_network_answers_like_the_network_itself() -> None:
    network = plain_network()
    network.train()
    network(3 * items(16))
    expected = network.eval()(items(5)).flatten(1)
    torch.testing.assert_close(Adopted(network, items(1)).eval()(items(5), None), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model", ["resnet10t", "tf_efficientnet_lite0", "vit_tiny_patch16_224", "convnext_atto"])
def test_a_network_of_timm_answers_like_the_network_itself(model: str) -> None:
    """Its batch normalisations apply the activation, too."""
    item = ImageKind(image_size=64, channels=3)
    config = TimmConfig(model=model, input_size=64)
    pictures = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    size = {"img_size": 64} if model.startswith("vit") else {}
    network = timm.create_model(model, num_classes=0, **size).eval()
    network(pictures)
    backbone = config.build(item).eval()
    record = WeightsRecord(source="test", licence="", sha256="", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    start_from(backbone, PretrainedWeights(name="test", record=record, tensors=network.state_dict()))
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (record.mean, record.std))
    with torch.no_grad():
        torch.testing.assert_close(backbone(pictures, None), network((pictures - mean) / std), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prefix", ["", "module.", "model.backbone."])
@pytest.mark.parametrize("name", ["conv4", "resnet12", "mlp", "adopted"])
def test_a_backbone_starts_from_weights_whatever_wraps_their_names(name: str, prefix: str) -> None:
    network = plain_network()
    other = Adopted(plain_network(), items(1)) if name == "adopted" else MAKERS[name]()
    state = network.state_dict() if name == "adopted" else other.state_dict()
    tensors = {f"{prefix}{key}": tensor for key, tensor in state.items()} | {"fc.weight": torch.ones(2)}
    backbone = made(name).eval()
    start_from(backbone, PretrainedWeights(name="test", record=RECORD, tensors=tensors))
    expected = Adopted(network, items(1)) if name == "adopted" else other
    assert torch.equal(backbone(items(3), None), expected.eval()(items(3), None))


def test_weights_of_another_network_are_refused_and_named() -> None:
    backbone = Conv4Config(width=8).build(ITEM)
    tensors = {name: tensor for name, tensor in backbone.state_dict().items() if "norms.1" not in name}
    with pytest.raises(
        ConfigError, match=r"the weights test do not fit the backbone: 4 of its 20 tensors .*'norms.1.wei"
    ):
        start_from(backbone, PretrainedWeights(name="test", record=RECORD, tensors=tensors))


@pytest.mark.parametrize("layer", ["convolutions.0", "norms"])
def test_only_what_is_named_is_frozen(layer: str) -> None:
    backbone = Conv4Config(width=8, freeze=(layer,)).build(ITEM)
    frozen = [name for name, parameter in backbone.named_parameters() if not parameter.requires_grad]
    assert frozen == [name for name, _ in backbone.named_parameters() if name.startswith(f"{layer}.")]
    assert all(norm.frozen == (layer == "norms") for norm in backbone.norms)


def test_a_layer_to_freeze_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match="names 'layer1', and no layer is called so; needed all, or of conv.*, norms"):
        Conv4Config(freeze=("layer1",)).build(ITEM)
    adopted = TorchvisionConfig(freeze=("layer1",)).build(ImageKind(image_size=32, channels=3))
    frozen = {name.removeprefix("network.network.") for name, p in adopted.named_parameters() if not p.requires_grad}
    assert frozen and all(name.startswith("layer1.") for name in frozen)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TorchvisionConfig(model="resnet81"), r"torchvision has no model 'resnet81'; .*did you mean 'resnet18'\?"),
        (TimmConfig(model="resnet81"), r"timm has no model 'resnet81'; did you mean"),
        (ModuleConfig(make="nowhere.py:make"), "backbone.make names nowhere.py, which is not there"),
        (ModuleConfig(make=f"{Path(__file__).parent / 'own_network.py'}:build"), "has no function 'build'"),
        (ResNet12Config(), "resnet12 got images of 8 pixels; need at least 16"),
    ],
)
def test_a_network_that_cannot_be_had_is_one_line(config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.build(ImageKind(image_size=8, channels=3))


def test_noise_is_drawn_from_a_named_key_and_is_off_without_one() -> None:
    backbone = ResNet12Config(widths=(8, 8, 8, 16), drop_rate=0.3, drop_block=1).build(ITEM).train()
    plain = backbone(items(3), 3)
    assert torch.equal(backbone(items(3), 3), plain)
    with drawing(5):
        first = backbone(items(3), 3)
    with drawing(5):
        assert torch.equal(backbone(items(3), 3), first)
    with drawing(6):
        assert not torch.equal(backbone(items(3), 3), first)
    assert not torch.equal(first, plain)


def test_blocks_are_dropped_at_about_the_rate_and_the_rest_keeps_the_mean() -> None:
    x = torch.ones(64, 16, 10, 10)
    with drawing(1):
        dropped = drop_blocks(x, 0.2, 3)
    assert 0.15 < (dropped == 0).float().mean().item() < 0.25
    assert dropped.mean().item() == pytest.approx(1, abs=1e-4)


def test_an_adopted_network_in_batch_mode_normalises_by_its_batch_as_in_training() -> None:
    network = plain_network()
    expected = network.train()(items(5)).flatten(1)
    torch.testing.assert_close(Adopted(network, items(1))(items(5), 5), expected, atol=1e-5, rtol=1e-4)


def test_statistics_that_are_kept_change_neither_with_the_batch_nor_by_calibration() -> None:
    adopted = Adopted(plain_network(), items(1), keep_statistics=True)
    before = adopted(items(5), None)
    calibrate(adopted, [9 * items(8)])
    torch.testing.assert_close(adopted(items(5), 5), before)
    assert all(module.frozen for module in adopted.modules() if isinstance(module, ReferenceNorm))


class FunctionalDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


@pytest.mark.parametrize("noise", [nn.Dropout(0.5), FunctionalDropout()], ids=["module", "function"])
def test_a_network_that_draws_noise_in_training_is_refused(noise: nn.Module) -> None:
    with pytest.raises(ConfigError, match="the network answers otherwise each time in training"):
        Adopted(nn.Sequential(nn.Flatten(), noise, nn.Linear(256, 4)), items(1))
    Adopted(nn.Sequential(nn.Flatten(), nn.Dropout(0.0), nn.Linear(256, 4)), items(1))


def test_two_adoptions_of_one_network_do_not_disturb_each_other() -> None:
    network = plain_network()
    first, second = Adopted(network, items(1)), Adopted(network, items(1))
    expected = first(items(5), 5)
    second(items(5), None)
    assert torch.equal(first(items(5), 5), expected)
    assert torch.equal(second(items(5), 5), expected)


def test_a_norm_that_stands_in_two_places_stays_one() -> None:
    norm = nn.BatchNorm2d(1)
    adopted = Adopted(nn.Sequential(norm, nn.Conv2d(1, 1, 3), norm), items(1))
    norms = [module for module in adopted.modules() if isinstance(module, ReferenceNorm)]
    assert len(norms) == 1
    assert not any(isinstance(module, nn.BatchNorm2d) for module in adopted.modules())


def test_a_network_in_double_precision_is_adopted_in_it() -> None:
    adopted = Adopted(plain_network().double(), items(1).double())
    assert adopted(items(3).double(), 3).dtype == torch.float64


def test_a_norm_that_no_batch_reaches_keeps_its_statistics() -> None:
    network = plain_network()
    network.add_module("auxiliary", nn.Identity())
    adopted = Adopted(network, items(1))
    adopted.unused = ReferenceNorm(3)  # type: ignore[assignment]
    calibrate(adopted, [items(4)])
    assert adopted.unused.population_mean.tolist() == [0, 0, 0]  # type: ignore[union-attr]


def test_statistics_of_one_thread_do_not_enter_those_of_another() -> None:
    backbone = made("adopted").eval()
    calibrate(backbone, [items(6)])
    expected = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    with recorded_statistics(backbone) as statistics:
        backbone(items(6), 6)
        other = threading.Thread(target=lambda: backbone(9 * items(6, seed=4), 6))
        other.start()
        other.join()
    assert all(torch.equal(value, expected[name]) for name, value in statistics().items())


@pytest.mark.parametrize("config", ADAPTERS, ids=lambda config: config.name)
def test_an_adapter_that_nothing_trained_keeps_the_angles_between_centred_features(config: Any) -> None:
    base = freeze(built(Conv4Config(width=8)), "all")
    backbone = config.build(base).eval()
    backbone.set_centre([items(8, seed=5), items(8, seed=6)])
    features = base(items(5), None)
    assert torch.allclose(backbone.centre, torch.cat([base(items(8, seed=s), None) for s in (5, 6)]).mean(0), atol=1e-6)
    plain, found = F.normalize(features - backbone.centre, dim=1), backbone(items(5), None)
    torch.testing.assert_close(found.norm(dim=1), torch.full((5,), 5**0.5))
    torch.testing.assert_close(found @ found.T / 5, plain @ plain.T, atol=1e-5, rtol=1e-4)


def test_an_adapter_on_features_answers_like_the_whole_and_shares_its_tensors() -> None:
    base = freeze(built(Conv4Config(width=8)), "all")
    whole = LinearAdapter(width=6).build(base).eval()
    assert isinstance(whole, WithAdapter)
    on_features = whole.on_features()
    on_features.set_centre([base(items(8, seed=5), None)])
    torch.testing.assert_close(on_features(base(items(3), None), None), whole(items(3), None))
    assert whole.centre.any() and dict(whole.named_parameters())["adapter.weight"] is on_features.adapter.weight
    assert {name for name, _ in on_features.named_parameters()} == {"adapter.weight", "adapter.bias"}
    assert on_features.bytes_per_item < whole.bytes_per_item
