from pathlib import Path

import numpy as np
import torch

from kshot.algorithms.protonet import ProtoNet
from kshot.backbones.contract import Flatten
from kshot.data.gather import item_gather
from kshot.data.packed import PackedDataset
from kshot.episodes.episode import EpisodeShape
from kshot.episodes.sampling import EpisodeIndices
from kshot.evaluation.seen_classes import mixed, on_seen_and_unseen_classes
from kshot.seeding import stream_key
from tests.tiny_dataset import tiny_dataset


def episodes(first_class: int) -> EpisodeIndices:
    """2000 episodes of 5 ways, whose items name their class: item = 100 * class + position."""
    class_ids = np.tile(np.arange(first_class, first_class + 5), (2000, 1))
    return EpisodeIndices(
        support=100 * class_ids[:, :, None] + np.arange(2),
        query=100 * class_ids[:, :, None] + np.arange(2, 5),
        class_ids=class_ids,
        keys=np.zeros(1, dtype=np.int64),
    )


def test_nothing_is_measured_where_a_class_has_too_few_images(tmp_path: Path) -> None:
    tiny = tiny_dataset(n_classes=4, n_images=5)
    dataset = PackedDataset.open(tiny.write(tmp_path / "tiny"))
    gather, learner = item_gather(dataset, torch.device("cpu")), ProtoNet(Flatten())
    for k_shot, n_rows in ((4, 5), (5, 0)):
        shape = EpisodeShape(n_way=3, k_shot=k_shot, n_query=9)
        rows = list(on_seen_and_unseen_classes(learner, dataset, shape, gather, seed=1, n_episodes=4))
        assert len(rows) == n_rows


def test_two_of_five_classes_come_from_the_first_with_their_own_items() -> None:
    both = mixed(episodes(0), episodes(10), stream_key(1, "order"))
    assert ((both.class_ids < 5).sum(axis=1) == 2).all()
    assert (both.support // 100 == both.class_ids[:, :, None]).all()
    assert (both.query // 100 == both.class_ids[:, :, None]).all()
    assert both.query.shape == (2000, 5, 3)


def test_a_label_says_nothing_about_where_its_class_comes_from() -> None:
    both = mixed(episodes(0), episodes(10), stream_key(1, "order"))
    assert np.abs((both.class_ids < 5).mean(axis=0) - 0.4).max() < 0.05
