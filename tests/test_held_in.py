import numpy as np

from kshot.held_in import mixed
from kshot.sampling import EpisodeIndices
from kshot.seeding import stream_key


def episodes(first_class: int) -> EpisodeIndices:
    """2000 episodes of 5 ways, whose items name their class: item = 100 * class + position."""
    class_ids = np.tile(np.arange(first_class, first_class + 5), (2000, 1))
    return EpisodeIndices(
        support=100 * class_ids[:, :, None] + np.arange(2),
        query=100 * class_ids[:, :, None] + np.arange(2, 5),
        class_ids=class_ids,
    )


def test_two_of_five_classes_come_from_the_first_with_their_own_items() -> None:
    both = mixed(episodes(0), episodes(10), stream_key(1, "order"))
    assert ((both.class_ids < 5).sum(axis=1) == 2).all()
    assert (both.support // 100 == both.class_ids[:, :, None]).all()
    assert (both.query // 100 == both.class_ids[:, :, None]).all()
    assert both.query.shape == (2000, 5, 3)


def test_a_label_says_nothing_about_where_its_class_comes_from() -> None:
    both = mixed(episodes(0), episodes(10), stream_key(1, "order"))
    assert np.abs((both.class_ids < 5).mean(axis=0) - 0.4).max() < 0.05
