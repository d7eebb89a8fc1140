import pytest
import torch

from kshot.episodes.episode import EpisodeBatch, Support
from kshot.errors import EpisodeError
from tests.toy_episodes import image_pools, point_pools


def test_one_by_one_gives_the_same_episodes() -> None:
    loader, _, _ = point_pools()
    batch = loader.load(range(3))
    parts = list(batch.one_by_one())
    assert len(batch) == len(parts) == 3
    assert torch.equal(parts[2].query_x[0], batch.query_x[2])


def test_labels_outside_the_way_are_refused() -> None:
    x, y = torch.zeros(1, 3, 2), torch.tensor([[0, 1, 5]])
    with pytest.raises(EpisodeError, match=r"support labels span 0..5; need 0..2"):
        Support(x=x, y=y, n_way=3)


def test_labels_of_another_type_or_length_are_refused() -> None:
    with pytest.raises(EpisodeError, match=r"torch.float32; need torch.int64"):
        Support(x=torch.zeros(1, 3, 2), y=torch.zeros(1, 3), n_way=3)
    with pytest.raises(EpisodeError, match=r"items are \(1, 3, 2\) and labels \(1, 2\)"):
        Support(x=torch.zeros(1, 3, 2), y=torch.zeros(1, 2, dtype=torch.int64), n_way=3)


def test_support_and_query_hold_as_many_episodes() -> None:
    y = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(EpisodeError, match="support holds 1 episodes, query 2"):
        EpisodeBatch(
            support_x=torch.zeros(1, 3, 2),
            support_y=y,
            query_x=torch.zeros(2, 3, 2),
            query_y=y.expand(2, 3),
            n_way=2,
            keys=torch.zeros(1, dtype=torch.int64),
        )


def test_images_are_scaled_channels_first_and_in_class_order() -> None:
    loader, _, _ = image_pools()
    batch = loader.load(range(2))
    assert batch.support_x.shape == (2, 6, 1, 16, 16)
    assert batch.query_x.shape == (2, 12, 1, 16, 16)
    assert 0 <= float(batch.support_x.min()) and float(batch.support_x.max()) <= 1
    assert batch.support_y.tolist() == [[0, 0, 1, 1, 2, 2]] * 2
