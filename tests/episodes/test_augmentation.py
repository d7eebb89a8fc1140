"""Augmentation is a function of an item and its key, and does what its name says."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest
from torch import Tensor

from kshot.algorithms.maths.losses import focal, query_cross_entropy
from kshot.episodes.augmentation import (
    Affine,
    Augmentation,
    Colour,
    Crop,
    CutMix,
    Cutout,
    EpisodeAugmentation,
    Flip,
    Grey,
    Mixup,
    Noise,
    RandAugment,
    augmented,
    augmented_batch,
    augmented_episodes,
    mixed_items,
)
from kshot.episodes.episode import EpisodeBatch, MixedLabels
from kshot.errors import ConfigError
from kshot.seeding import random_words

ALL = [augmentation() for augmentation in get_args(get_args(Augmentation)[0])]
every_augmentation = pytest.mark.parametrize("augment", ALL, ids=lambda augment: augment.name)


def keys(*shape: int, seed: int = 0) -> Tensor:
    return random_words(seed, torch.arange(int(np.prod(shape)))).view(shape)


def pictures(*shape: int, channels: int = 3) -> Tensor:
    return torch.rand(*shape, channels, 16, 16, generator=torch.Generator().manual_seed(1))


def episodes(n: int, *, n_way: int = 3) -> EpisodeBatch:
    return EpisodeBatch(
        support_x=pictures(n, n_way),
        support_y=torch.arange(n_way).expand(n, -1),
        query_x=pictures(n, 2 * n_way) / 2,
        query_y=torch.arange(n_way).repeat_interleave(2).expand(n, -1),
        n_way=n_way,
        keys=keys(n),
    )


@every_augmentation
@pytest.mark.parametrize("channels", [1, 3])
def test_an_item_is_changed_by_its_key_alone_and_stays_a_picture(augment: Any, channels: int) -> None:
    items, of_items = pictures(40, channels=channels), keys(40)
    together = augmented(items, of_items, [augment])
    alone = torch.cat([augmented(one[None], key[None], [augment]) for one, key in zip(items, of_items, strict=True)])
    assert torch.equal(together, alone) and together.shape == items.shape
    assert together.min() >= 0 and together.max() <= 1
    if not (channels == 1 and augment.name == "grey"):
        assert not torch.equal(together, items)
        assert not torch.equal(together, augmented(items, keys(40, seed=1), [augment]))


@pytest.mark.parametrize(
    "augment",
    [
        Affine(degrees=0, scale=0, shift=0),
        Crop(smallest=1),
        Colour(brightness=0, contrast=0, saturation=0),
        Grey(part=0),
        Noise(std=0),
        Cutout(side=0),
        RandAugment(magnitude=0),
    ],
    ids=lambda augment: augment.name,
)
def test_at_strength_zero_nothing_changes(augment: Any) -> None:
    items = (pictures(50) * 255).round() / 255
    torch.testing.assert_close(augmented(items, keys(50), [augment]), items, atol=2e-5, rtol=0)


def test_about_half_of_the_items_are_flipped() -> None:
    items = pictures(400)
    found = augmented(items, keys(400), [Flip()])
    flipped = (found == items.flip(-1)).flatten(1).all(1)
    assert ((found == items).flatten(1).all(1) ^ flipped).all() and 160 < int(flipped.sum()) < 240


def test_a_turn_is_about_the_middle_and_a_shift_is_in_parts_of_the_side() -> None:
    dot = torch.zeros(200, 1, 16, 16)
    dot[:, :, 7:9, 7:9] = 1
    turned = augmented(dot, keys(200), [Affine(degrees=180, scale=0, shift=0)])
    assert (turned[:, 0, 7:9, 7:9].mean((1, 2)) > 0.6).all()
    moved = augmented(dot, keys(200), [Affine(degrees=0, scale=0, shift=0.25)])
    places = torch.arange(16.0) + 0.5
    centres = (moved[:, 0].sum(1) * places).sum(1) / moved[:, 0].sum((1, 2))
    assert 3.9 < float(centres.min()) < 5 and 11 < float(centres.max()) < 12.1


def test_cutout_covers_a_square_of_its_side() -> None:
    found = augmented(torch.zeros(300, 1, 16, 16), keys(300), [Cutout(side=0.5)])
    covered = (found == 0.5).sum((1, 2, 3))
    assert int(covered.max()) == 64 and int(covered.min()) >= 16


def test_noise_is_normal() -> None:
    found = augmented(torch.full((60, 1, 16, 16), 0.5), keys(60), [Noise(std=0.05)]) - 0.5
    assert kstest(found.flatten().numpy() / 0.05, "norm").pvalue > 1e-3


def test_randaugment_changes_nearly_every_item() -> None:
    n = 400
    changed = (augmented(pictures(n), keys(n), [RandAugment(n=1, magnitude=1)]) != pictures(n)).flatten(1).any(1)
    assert float(changed.float().mean()) > 0.95


def test_an_episode_is_augmented_alike_in_every_batch_and_support_and_query_by_their_own() -> None:
    how = EpisodeAugmentation(support=(RandAugment(),), query=(Grey(part=1),), mix=CutMix())
    batch = episodes(6)
    together = augmented_episodes(batch, how)
    for i, one in enumerate(batch.one_by_one()):
        alone = augmented_episodes(one, how)
        assert torch.equal(alone.support_x[0], together.support_x[i])
        assert torch.equal(alone.query_x[0], together.query_x[i])
        assert alone.mixed is not None and together.mixed is not None
        assert torch.equal(alone.mixed.y[0], together.mixed.y[i])
    red, green, _ = together.query_x.unbind(2)
    torch.testing.assert_close(red, green)
    as_support = augmented_episodes(batch, EpisodeAugmentation(support=(Grey(part=1),)))
    torch.testing.assert_close(*as_support.query_x.unbind(2)[:2])


def test_without_settings_an_episode_stays_as_it_is() -> None:
    batch = episodes(2)
    assert augmented_episodes(batch, EpisodeAugmentation()) is batch


def test_mixup_averages_pictures_and_shares_are_beta() -> None:
    batch = episodes(500)
    found, mixed = mixed_items(batch.query_x, batch.query_y, batch.keys, Mixup(alpha=0.5))
    assert mixed is not None and kstest(mixed.share.numpy(), beta(0.5, 0.5).cdf).pvalue > 1e-3
    totals = found.sum((1, 2, 3, 4))
    torch.testing.assert_close(totals, batch.query_x.sum((1, 2, 3, 4)))  # partners are a permutation


def test_cutmix_shares_are_the_area_that_is_left() -> None:
    batch = episodes(100)
    marked = torch.arange(6.0)[None, :, None, None, None].expand_as(batch.query_x) / 6
    found, mixed = mixed_items(marked, batch.query_y, batch.keys, CutMix())
    assert mixed is not None
    own = (found == marked).float().mean((2, 3, 4))
    partner_is_another = (found != marked).flatten(2).any(2)
    torch.testing.assert_close(own[partner_is_another], mixed.share[:, None].expand_as(own)[partner_is_another])
    others = (found.flatten(2).sum(2) - marked.flatten(2).sum(2) * mixed.share[:, None]) / (found[0, 0].numel() / 6)
    labels = (others / (1 - mixed.share[:, None])).round().long() // 2
    assert torch.equal(labels[mixed.share < 0.9], mixed.y[mixed.share < 0.9])


def test_the_loss_of_mixed_queries_is_that_of_both_labels() -> None:
    batch = episodes(4)
    logits = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0))
    mixed = MixedLabels(y=batch.query_y.roll(2, 1), share=torch.tensor([0.0, 0.3, 0.7, 1.0]))
    from dataclasses import replace

    for loss in (query_cross_entropy, lambda logits, of: focal(logits, of, gamma=2.0)):
        own, other = loss(logits, batch), loss(logits, replace(batch, query_y=mixed.y))
        torch.testing.assert_close(
            loss(logits, replace(batch, mixed=mixed)), mixed.share * own + (1 - mixed.share) * other
        )


def test_a_batch_is_augmented_by_its_key() -> None:
    how = EpisodeAugmentation(support=(Affine(),), mix=Mixup())
    items, labels = pictures(5), torch.arange(5)
    first, again, other = (augmented_batch(items, labels, key, how) for key in (1, 1, 2))
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other[0])
    assert first[1] is not None and first[1].y.shape == (1, 5)


def test_items_that_are_no_pictures_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"augment got items of shape \(7,\); needed images; next: take augment out"):
        augmented(torch.zeros(3, 7), keys(3), [Flip()])
