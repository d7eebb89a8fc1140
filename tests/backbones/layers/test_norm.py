import pytest
import torch
from torch.nn import functional as F

from kshot.backbones import Conv4Config
from kshot.backbones.contract import calibrate
from kshot.backbones.conv4 import Conv4
from kshot.backbones.layers.norm import ReferenceNorm, channels_last
from kshot.data.items import ImageKind, VectorKind
from kshot.errors import ConfigError


def features(x: torch.Tensor, n_reference: int | None) -> torch.Tensor:
    torch.manual_seed(0)
    return Conv4(4, channels=x.shape[1], image_size=x.shape[2])(x, n_reference)


def test_conv4_has_the_features_of_the_literature() -> None:
    assert Conv4Config().build(ImageKind(image_size=28, channels=1)).n_features == 64
    assert Conv4Config().build(ImageKind(image_size=84, channels=3)).n_features == 1600


def test_conv4_equals_the_textbook_order_of_layers() -> None:
    torch.manual_seed(0)
    net = Conv4Config(width=4).build(ImageKind(image_size=20, channels=3))
    x = torch.rand(6, 3, 20, 20)
    expected = x
    for convolution, norm in zip(net.convolutions, net.norms, strict=True):
        y = F.conv2d(expected, convolution.weight, padding=1)
        y = F.batch_norm(y, None, None, norm.weight, norm.bias, training=True)
        expected = F.max_pool2d(F.relu(y), 2)
    torch.testing.assert_close(net(x, 6), expected.flatten(1))


def test_images_too_small_for_four_poolings_are_refused() -> None:
    with pytest.raises(ConfigError, match="images of 8 pixels; need at least 16"):
        Conv4Config().build(ImageKind(image_size=8, channels=1))


def test_items_that_are_no_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="conv4 got vectors of 5 numbers; needed images"):
        Conv4Config().build(VectorKind(size=5))


def test_reference_images_alone_set_the_statistics() -> None:
    torch.manual_seed(1)
    x = torch.rand(9, 1, 16, 16)
    changed = torch.cat([x[:5], torch.rand(4, 1, 16, 16)])
    torch.testing.assert_close(features(x, 5)[:5], features(changed, 5)[:5])
    torch.testing.assert_close(features(x, 5)[:5], features(x[:5], 5), rtol=1e-4, atol=1e-5)


def test_with_population_statistics_every_image_is_alone() -> None:
    torch.manual_seed(1)
    x = torch.rand(6, 1, 16, 16)
    net = Conv4Config(width=4).build(ImageKind(image_size=16, channels=1))
    calibrate(net, [torch.rand(8, 1, 16, 16) for _ in range(3)])
    torch.testing.assert_close(net(x, None)[2:3], net(x[2:3], None))


def test_calibration_sets_the_mean_statistics_of_the_batches() -> None:
    norm = ReferenceNorm(2)
    batches = [torch.rand(5, 2, 3, 3) * scale for scale in (1, 4)]
    calibrate(norm, batches)
    torch.testing.assert_close(norm.population_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
    variances = [b.var((0, 2, 3), correction=0) for b in batches]
    torch.testing.assert_close(norm.population_var, torch.stack(variances).mean(0))


def test_one_batch_of_calibration_reproduces_its_batch_mode() -> None:
    torch.manual_seed(2)
    x = torch.rand(7, 1, 16, 16)
    net = Conv4Config(width=4).build(ImageKind(image_size=16, channels=1))
    calibrate(net, [x])
    torch.testing.assert_close(net(x, None), net(x, 7), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_strides_are_channels_last_also_for_one_channel(channels: int) -> None:
    x = channels_last(torch.rand(2, channels, 5, 4))
    assert x.stride() == (20 * channels, 1, 4 * channels, channels)
