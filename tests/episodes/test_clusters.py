"""Pseudo-classes: clusters of features, and episodes of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from kshot.config import params_from
from kshot.data.packed import PackedDataset
from kshot.episodes.clusters import (
    KMeansClustering,
    MiniBatchKMeansClustering,
    Partitions,
    cluster_table,
    partitions_of,
)
from kshot.episodes.episode import EpisodeShape
from kshot.episodes.frozen import train_pools
from kshot.episodes.pools import SampledPool
from kshot.episodes.sampling import WithinPartition, check_feasible
from kshot.errors import ConfigError, DataError, EpisodeError
from tests.tiny_dataset import tiny_dataset
from tests.tiny_project import tiny_params

SHAPE = EpisodeShape(n_way=3, k_shot=1, n_query=2)
KMEANS = {"name": "kmeans", "features": "values", "n_clusters": 4}


def blobs(n_blobs: int = 6, n_each: int = 20, n_features: int = 5) -> NDArray[np.float32]:
    """Features of which those of blob b are rows b, b + n_blobs, ..."""
    draw = np.random.default_rng(0)
    centres = 20 * draw.standard_normal((n_blobs, n_features))
    return (np.tile(centres, (n_each, 1)) + draw.standard_normal((n_blobs * n_each, n_features))).astype(np.float32)


def partitions(seed: int = 1, *, n_clusters: int = 6, n_partitions: int = 4, at_once: int = 1) -> Partitions:
    features = np.random.default_rng(5).standard_normal((200, 8)).astype(np.float32)
    settings = KMeansClustering(features="values", n_clusters=n_clusters, n_partitions=n_partitions)
    return partitions_of(features, 1000 + 2 * np.arange(200), settings, seed=seed, at_once=at_once)


def pool_of(found: Partitions, shape: EpisodeShape = SHAPE, *, n_views: int = 1) -> SampledPool:
    table = cluster_table(found, shape.items_per_class, n_views=n_views, n_items=5000)
    return SampledPool.of_split(table, shape, WithinPartition(), seed=1, split="meta_train by clusters")


@pytest.mark.parametrize("kind", [KMeansClustering, MiniBatchKMeansClustering])
def test_items_that_lie_together_are_one_cluster(kind: Any) -> None:
    settings = kind(features="values", n_clusters=6, n_partitions=1)
    found = partitions_of(blobs(), np.arange(120), settings, seed=4)
    of_blob = found.clusters[0].reshape(20, 6)
    assert (of_blob == of_blob[0]).all()


def test_the_first_partition_is_of_the_features_as_they_are_and_others_of_scaled_ones() -> None:
    features = np.random.default_rng(5).standard_normal((200, 8)).astype(np.float32)
    found = partitions()
    first = KMeans(6, init=_centres(features, found.clusters[0]), n_init=1).fit(features)
    assert np.array_equal(first.labels_, found.clusters[0]), "its clusters are a fixed point of k-means"
    for clusters in found.clusters[1:]:
        moved = KMeans(6, init=_centres(features, clusters), n_init=1, max_iter=1).fit(features).labels_
        assert not np.array_equal(moved, clusters)
    assert len({clusters.tobytes() for clusters in found.clusters}) == 4


def _centres(features: NDArray[np.float32], clusters: NDArray[np.int64]) -> NDArray[np.float32]:
    return np.stack([features[clusters == number].mean(0) for number in range(6)])


def test_partitions_are_the_same_for_a_seed_however_many_are_made_together() -> None:
    found = partitions()
    assert found.hash == partitions().hash == partitions(at_once=3).hash
    assert found.hash != partitions(seed=2).hash
    assert np.array_equal(partitions(n_partitions=2).clusters, found.clusters[:2])


def test_equal_items_make_fewer_clusters_without_a_warning() -> None:
    settings = KMeansClustering(features="values", n_clusters=4, n_partitions=1)
    found = partitions_of(np.ones((30, 2), dtype=np.float32), np.arange(30), settings, seed=1)
    with pytest.raises(EpisodeError, match=r"has 1 cluster of at least 3 items; 3-way 1-shot with 2 queries needs 3; "):
        pool_of(found).episodes(range(1))


def test_more_clusters_than_items_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"n_clusters is 500, and meta_train has 200 items; .*; next: set n_clusters: 10"
    ):
        partitions(n_clusters=500)


@pytest.mark.parametrize("n_views", [1, 3])
def test_a_table_has_the_clusters_that_are_large_enough_and_their_views(n_views: int) -> None:
    found = partitions(n_clusters=40)
    table = cluster_table(found, 6, n_views=n_views, n_items=5000)
    expected = {}
    for number, clusters in enumerate(found.clusters):
        for cluster in range(40):
            members = found.items[clusters == cluster]
            for view in range(n_views):
                if len(members) >= 6:
                    expected[view * 160 + number * 40 + cluster] = (number, (members + view * 5000).tolist())
    assert 0 < len(expected) < 160 * n_views
    rows = {
        int(name): (int(table.groups[row]), table.items_at(np.array(row), np.arange(table.counts[row])).tolist())
        for row, name in enumerate(table.class_ids)
    }
    assert rows == expected
    assert (np.diff(table.groups) >= 0).all() and np.array_equal(np.bincount(table.groups), table.group_sizes)
    sizes = [len(members) for _, members in expected.values()]
    assert (table.smallest_class, table.largest_class) == (min(sizes), max(sizes))
    assert (table.smallest_group, table.largest_group) == (min(table.group_sizes), max(table.group_sizes))


@pytest.mark.parametrize("n_clusters", [3, 6, 30], ids=["every one", "few", "many"])
def test_an_episode_draws_a_partition_and_then_clusters_of_it(n_clusters: int) -> None:
    found = partitions(n_clusters=n_clusters)
    drawn = pool_of(found).episodes(range(2000))
    number = drawn.class_ids // n_clusters
    assert (number == number[:, :1]).all()
    assert (np.diff(np.sort(drawn.class_ids, axis=1), axis=1) > 0).all()
    items = np.concatenate([drawn.support, drawn.query], axis=2)
    clusters = found.clusters[number[:, :, None], (items - 1000) // 2]
    assert (clusters == (drawn.class_ids % n_clusters)[:, :, None]).all()
    assert (np.diff(np.sort(items.reshape(2000, -1), axis=1), axis=1) > 0).all(), "no item stands in an episode twice"
    share = np.bincount(number[:, 0], minlength=4) / 2000
    assert abs(share - 0.25).max() < 0.05, "partitions are equally likely, whatever is left of them"


def test_episodes_are_the_same_on_a_device_and_in_any_order() -> None:
    pool = pool_of(partitions(), n_views=2)
    here, there = pool.episodes(range(60)), pool.on(torch.device("cpu")).episodes(range(60))
    assert np.array_equal(here.support, there.support.numpy()) and np.array_equal(here.query, there.query.numpy())
    assert np.array_equal(pool.episodes(range(50, 60)).query, here.query[50:])


def test_too_few_clusters_for_an_episode_are_refused() -> None:
    shape = EpisodeShape(n_way=7, k_shot=1, n_query=2)
    pool = pool_of(partitions(), shape)
    with pytest.raises(
        EpisodeError, match=r"a partition .* has 6 clusters of at least 3 items; 7-way .* needs 7; next"
    ):
        check_feasible(pool.table, pool.shape, pool.sampler)


def test_partitions_are_read_as_they_were_written(tmp_path: Path) -> None:
    found, file = partitions(), tmp_path / "partitions.safetensors"
    with pytest.raises(DataError, match=r"no pseudo-classes at .*; next: kshot stage pseudo_labels"):
        Partitions.load(file)
    file.write_bytes(found.to_bytes())
    assert Partitions.load(file).to_bytes() == found.to_bytes()
    file.write_bytes(found.to_bytes()[:-100])
    with pytest.raises(DataError, match=r"holds no pseudo-classes .*; next: kshot stage pseudo_labels"):
        Partitions.load(file)


def by_clusters(**changes: Any) -> dict[str, Any]:
    params = tiny_params() | {"pseudo_labels": KMEANS} | changes
    params["task_pool"]["meta_train"]["labels"] = {"name": "clusters"}
    return params


def test_every_shape_of_an_episode_has_a_pool_of_the_clusters_that_are_large_enough_for_it(tmp_path: Path) -> None:
    dataset = PackedDataset.open(tiny_dataset(n_classes=5, n_images=6).write(tmp_path / "tiny"))
    params = by_clusters()
    params["task_pool"]["meta_train"]["more_shapes"] = [{"n_way": 2, "k_shot": 5, "n_query": 2}]
    settings = params_from(params, source="params.yaml").task_pool
    small, large = train_pools(dataset, settings, seed=1, partitions=partitions(n_clusters=30))
    assert (small.table.smallest_class, large.table.smallest_class) == (3, 7)
    assert small.key != large.key
    given = train_pools(dataset, params_from(tiny_params(), source="params.yaml").task_pool, seed=1)
    assert small.key != given[0].key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pseudo_labels": {"name": "none"}},
            "labels is clusters, and pseudo_labels is none, .*; next: set pseudo_labels: {name: kmeans, features: ",
        ),
        (
            {"pseudo_labels": KMEANS | {"features": "pretrained"}},
            "pseudo_labels.features is pretrained; need a pretrain.name other than none, .*; next: set pretrain: ",
        ),
        (
            {
                "pseudo_labels": KMEANS | {"features": "pretrained"},
                "pretrain": {"name": "supervised", "n_steps": 2},
            },
            "pretrained, by the labels of meta_train; need a pretraining without them; next: set pretrain: {name: sim",
        ),
        ({"pseudo_labels": KMEANS | {"n_clusters": 1}}, "pseudo_labels.n_clusters is 1; "),
        ({"pseudo_labels": {"name": "kmean"}}, "pseudo_labels.name is 'kmean'; .*; did you mean kmeans"),
        ({"pseudo_labels": KMEANS | {"clusters": 3}}, "unknown key pseudo_labels.clusters; did you mean n_clusters"),
    ],
)
def test_what_gives_no_clusters_without_labels_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        params_from(by_clusters(**changes), source="params.yaml")


def test_a_clustering_that_no_episode_uses_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="pseudo_labels is kmeans, and .*labels is given, .*; next: set labels: {name"
    ):
        params_from(tiny_params() | {"pseudo_labels": KMEANS}, source="params.yaml")


def test_episodes_of_clusters_are_drawn_by_no_group_or_domain() -> None:
    params = by_clusters()
    params["task_pool"]["meta_train"]["sampler"] = {"name": "within_group"}
    with pytest.raises(ConfigError, match=r"labels is clusters, .*, and sampler is within_group; next: set sampler: "):
        params_from(params, source="params.yaml")
