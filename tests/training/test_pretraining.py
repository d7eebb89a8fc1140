"""The pretext tasks, against what their equations say."""

import pytest
import torch
from torch import Tensor, nn

from kshot.training.pretraining import RotationPretraining, SimCLRPretraining, contrastive_loss


class Pixels(nn.Module):
    def forward(self, items: Tensor, n_reference: int | None) -> Tensor:
        return items.flatten(1)


def test_the_contrastive_loss_is_that_of_the_equation() -> None:
    torch.manual_seed(0)
    projections, temperature, total = torch.randn(8, 5, dtype=torch.float64), 0.5, 0.0
    unit = projections / projections.norm(dim=1, keepdim=True)
    for i in range(8):
        partner = (i + 4) % 8
        others = sum(float(torch.exp(unit[i] @ unit[k] / temperature)) for k in range(8) if k != i)
        total -= float(torch.log(torch.exp(unit[i] @ unit[partner] / temperature) / others))
    assert float(contrastive_loss(projections, temperature)) == pytest.approx(total / 8)


def test_simclr_compares_two_views_of_each_item_by_its_key() -> None:
    torch.manual_seed(0)
    pretext = SimCLRPretraining(n_steps=1, width=4)
    head, items, keys = pretext.head(3 * 64), torch.rand(6, 3, 8, 8), torch.arange(6)
    seen: list[Tensor] = []

    class Kept(Pixels):
        def forward(self, items: Tensor, n_reference: int | None) -> Tensor:
            seen.append(items)
            return super().forward(items, n_reference)

    first = pretext.loss(Kept(), head, items, keys)
    assert torch.equal(first, pretext.loss(Pixels(), head, items, keys))
    assert seen[0].shape == (12, 3, 8, 8) and not torch.equal(seen[0][:6], seen[0][6:])
    assert not torch.equal(first, pretext.loss(Pixels(), head, items, keys + 6))


def test_rotation_asks_for_the_quarters() -> None:
    class Knowing(nn.Module):
        def forward(self, features: Tensor) -> Tensor:
            """The bright corner goes round counter-clockwise."""
            pictures = features.view(-1, 4, 4)
            corners = [pictures[:, 0, 0], pictures[:, 3, 0], pictures[:, 3, 3], pictures[:, 0, 3]]
            return 50 * torch.stack(corners, 1)

    items = torch.zeros(5, 1, 4, 4)
    items[:, :, 0, 0] = 1
    pretext = RotationPretraining(n_steps=1)
    assert float(pretext.loss(Pixels(), Knowing(), items, torch.arange(5))) < 1e-6
    assert pretext.head(16)(torch.zeros(2, 16)).shape == (2, 4)
