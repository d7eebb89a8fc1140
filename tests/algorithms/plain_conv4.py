"""Conv4 with a linear head from textbook calls, and episodes of images in float64 for it."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kshot.backbones import Conv4Config
from kshot.data.items import ImageKind
from kshot.episodes.episode import EpisodeBatch
from tests.toy_episodes import SHAPE, image_pools


def on_conv4(learner: Any, config: Any, image_size: int = 16, **further: Any) -> Any:
    """A learner of this class on a backbone whose 17 channels are enough for the native convolutions."""
    torch.manual_seed(0)
    backbone = Conv4Config(width=17).build(ImageKind(image_size=image_size, channels=1))
    return learner(backbone, config, n_features=backbone.n_features, n_way=SHAPE.n_way, **further)


def episodes(n: int = 2, image_size: int = 16) -> EpisodeBatch:
    batch = image_pools()[0].load(range(n))

    def larger(x: Tensor) -> Tensor:
        return F.interpolate(x.flatten(0, 1).double(), image_size).view(*x.shape[:3], image_size, image_size)

    return EpisodeBatch(
        support_x=larger(batch.support_x),
        support_y=batch.support_y,
        query_x=larger(batch.query_x),
        query_y=batch.query_y,
        n_way=batch.n_way,
        keys=batch.keys,
    )


def weights_of(learner: Any) -> list[Tensor]:
    """As `plain_forward` takes them."""
    return [*learner.backbone.parameters(), *learner.head.parameters()]


def plain_forward(parameters: list[Tensor], x: Tensor) -> Tensor:
    """Logits of images (I, 1, H, W); parameters as (convolution, weight, bias) * 4, head."""
    convolutions, norms, head = parameters[:4], parameters[4:12], parameters[12:]
    for i in range(4):
        x = F.conv2d(x, convolutions[i], padding=1)
        x = F.batch_norm(x, None, None, norms[2 * i], norms[2 * i + 1], training=True)
        x = F.max_pool2d(F.relu(x), 2)
    return F.linear(x.flatten(1), *head)


def assert_close_to_the_largest(found: Tensor, plain: Tensor) -> None:
    """Within rounding of float64, of which the largest number says the size."""
    assert float((found - plain).abs().max()) <= 1e-9 * float(plain.abs().max())
