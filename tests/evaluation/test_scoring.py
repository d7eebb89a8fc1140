import numpy as np
import pytest
import torch
from torch import Tensor

from kshot.algorithms.linear_probe import LinearProbe
from kshot.algorithms.protonet import ProtoNet
from kshot.backbones.contract import Flatten
from kshot.data.class_table import Int
from kshot.episodes.episode import EpisodeShape
from kshot.episodes.sampling import EpisodeIndices
from kshot.evaluation.scoring import all_embedded_once, embedded_once, score_episodes
from tests.toy_episodes import image_pools, point_gather


def test_scores_count_right_answers_of_each_class() -> None:
    points = torch.tensor([[0.0], [1.0], [10.0], [11.0], [4.0], [9.0]])
    indices = EpisodeIndices(
        support=np.array([[[0], [2]]]),
        query=np.array([[[1, 5], [3, 4]]]),
        class_ids=np.array([[7, 3]]),
        keys=np.zeros(1, dtype=np.int64),
    )
    scores = score_episodes(ProtoNet(Flatten()), indices, point_gather(points))
    assert scores.correct.tolist() == [[1, 1]]  # 9.0 is nearer to 10.0, 4.0 nearer to 0.0
    assert scores.accuracy.tolist() == [0.5]


def test_an_item_is_embedded_once_for_all_lists_of_episodes() -> None:
    _, pool, gather = image_pools(EpisodeShape(n_way=4, k_shot=3, n_query=2))
    seen: list[int] = []

    def counting(items: Int) -> Tensor:
        seen.extend(items.ravel().tolist())
        return gather(items)

    learner = ProtoNet(Flatten())
    on_features, features = embedded_once(learner, counting)
    halves = [score_episodes(on_features, pool.indices[part], features) for part in (slice(0, 7), slice(7, 12))]
    again = score_episodes(on_features, pool.indices, features)
    whole = score_episodes(learner, pool.indices, gather)
    assert np.concatenate([half.predicted for half in halves]).tolist() == whole.predicted.tolist()
    np.testing.assert_array_equal(again.confidence, whole.confidence)
    used = np.unique(np.concatenate([pool.indices.support.ravel(), pool.indices.query.ravel()]))
    assert sorted(seen) == used.tolist()


def test_learners_that_share_a_backbone_share_the_features_of_each_item() -> None:
    _, pool, gather = image_pools(EpisodeShape(n_way=4, k_shot=3, n_query=2))
    seen: list[int] = []

    def counting(items: Int) -> Tensor:
        seen.extend(items.ravel().tolist())
        return gather(items)

    backbone = Flatten()
    learners = {"prototypes": ProtoNet(backbone), "linear": LinearProbe(backbone), "apart": ProtoNet(Flatten())}
    together = all_embedded_once(learners, counting)
    for name, (on_features, features) in together.items():
        found = score_episodes(on_features, pool.indices, features)
        np.testing.assert_array_equal(found.predicted, score_episodes(learners[name], pool.indices, gather).predicted)
    used = np.unique(np.concatenate([pool.indices.support.ravel(), pool.indices.query.ravel()]))
    assert sorted(seen) == sorted([*used, *used])


def test_the_pixel_baseline_is_the_nearest_centroid_of_the_pixels() -> None:
    shape = EpisodeShape(n_way=4, k_shot=3, n_query=2)
    _, pool, gather = image_pools(shape)
    found = score_episodes(ProtoNet(Flatten()), pool.indices, gather).accuracy
    expected = []
    for support, query in zip(pool.indices.support, pool.indices.query, strict=True):
        centroids = gather(support).flatten(2).mean(1)
        nearest = torch.cdist(gather(query).flatten(2).flatten(0, 1), centroids).argmin(1).view(4, 2)
        expected.append(float((nearest == torch.arange(4)[:, None]).double().mean()))
    assert found.tolist() == pytest.approx(expected)
