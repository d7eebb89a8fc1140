"""Train episodes whose classes are made without labels."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kshot.config import params_from
from kshot.data.packed import PackedDataset
from kshot.episodes.augmentation import Affine, EpisodeAugmentation, Flip
from kshot.episodes.frozen import train_pools
from kshot.episodes.labels import InstanceLabels, train_items
from kshot.episodes.loader import EpisodeLoader
from kshot.episodes.pools import TaskPoolSettings
from kshot.episodes.sampling import sample_episodes
from kshot.errors import ConfigError, EpisodeError
from tests.tiny_dataset import TinyDataset, tiny_dataset
from tests.tiny_project import tiny_params

ROTATED = (0, 90, 180, 270)


def packed(folder: Path, tiny: TinyDataset | None = None) -> PackedDataset:
    return PackedDataset.open((tiny or tiny_dataset(n_classes=5, n_images=6)).write(folder / "tiny"))


def pool_settings(**train: Any) -> TaskPoolSettings:
    return params_from(by_instances(**train), source="params.yaml").task_pool


def by_instances(**train: Any) -> dict[str, Any]:
    params = tiny_params()
    params["task_pool"]["meta_train"] |= {"labels": {"name": "instances"}} | train
    params["meta_train"]["augment"] = {"query": [{"name": "affine"}]}
    return params


def test_the_labels_are_the_given_ones_where_nothing_is_said() -> None:
    said, unsaid = tiny_params(), tiny_params()
    said["task_pool"]["meta_train"]["labels"] = {"name": "given"}
    assert params_from(said, source="params.yaml") == params_from(unsaid, source="params.yaml")


@pytest.mark.parametrize("rotations", [(0,), ROTATED], ids=["upright", "rotated"])
def test_an_item_is_the_support_and_all_queries_of_its_class(tmp_path: Path, rotations: tuple[int, ...]) -> None:
    tiny = tiny_dataset(n_classes=5, n_images=6)
    tiny.rotations = rotations
    dataset = packed(tmp_path, tiny)
    (pool,) = train_pools(dataset, pool_settings(), seed=1)
    drawn = pool.episodes(range(5_000))
    assert (drawn.query == drawn.support).all() and drawn.query.shape == (5_000, 3, 2)
    assert (np.diff(np.sort(drawn.class_ids, axis=1), axis=1) > 0).all()
    of_train = np.isin(dataset.labels, dataset.class_ids("meta_train")).nonzero()[0]
    assert np.array_equal(np.unique(drawn.support), of_train)
    assert np.array_equal(train_items(dataset), of_train)
    share = np.bincount(drawn.support.ravel())[of_train] / 15_000 * len(of_train)
    assert abs(share - 1).max() < 0.6  # every item is equally likely


def test_the_support_is_the_item_itself_and_every_query_another_copy_of_it(tmp_path: Path) -> None:
    dataset = packed(tmp_path)

    def gather(items: Any) -> torch.Tensor:
        return dataset.item.tensor(torch.from_numpy(dataset.gather(items)))

    loader = EpisodeLoader.of_training(
        train_pools(dataset, pool_settings(), seed=1), gather, EpisodeAugmentation(query=(Affine(), Flip()))
    )
    episodes, plain = loader.load(range(7, 9)), loader.load_plain(range(7, 9))
    assert torch.equal(episodes.support_x, plain.support_x)
    assert torch.equal(plain.query_x[:, ::2], plain.support_x)
    first, second = episodes.query_x[:, ::2], episodes.query_x[:, 1::2]
    for one, other in ((first, episodes.support_x), (second, episodes.support_x), (first, second)):
        assert ((one - other).abs().flatten(2).amax(2) > 0.05).all()
    assert torch.equal(loader.load(range(8, 9)).query_x[0], episodes.query_x[1])


def test_views_of_an_item_are_classes_of_their_own(tmp_path: Path) -> None:
    dataset = packed(tmp_path)
    (pool,) = train_pools(dataset, pool_settings(views=["180"]), seed=1)
    assert len(pool.table.class_ids) == len(set(pool.table.class_ids)) == 60
    assert pool.table.items[30:, 0].tolist() == [len(dataset.labels) + item for item in range(30)]


def test_the_draws_are_apart_from_those_of_the_given_labels_and_the_same_on_a_device(tmp_path: Path) -> None:
    dataset, settings = packed(tmp_path), pool_settings()
    (pool,) = train_pools(dataset, settings, seed=1)
    given = replace(settings, meta_train=replace(settings.meta_train, labels=pool_settings_given()))
    assert pool.key != train_pools(dataset, given, seed=1)[0].key
    here, there = pool.episodes(range(40)), pool.on(torch.device("cpu")).episodes(range(40))
    assert np.array_equal(here.support, np.asarray(there.support))
    part = sample_episodes(pool.table, pool.shape, pool.sampler, pool.key, np.arange(30, 40))
    assert np.array_equal(part.support, here.support[30:])


def pool_settings_given() -> Any:
    return params_from(tiny_params(), source="params.yaml").task_pool.meta_train.labels


def test_permuted_labels_of_meta_train_draw_the_same_episodes(tmp_path: Path) -> None:
    one = packed(tmp_path / "one")
    tiny = tiny_dataset(n_classes=5, n_images=6)
    tiny.manifest.loc[:29, "class"] = np.random.default_rng(0).permutation(tiny.manifest["class"][:30])
    other = packed(tmp_path / "other", tiny)
    assert not np.array_equal(one.labels, other.labels)
    (first,), (second,) = (train_pools(dataset, pool_settings(), seed=1) for dataset in (one, other))
    assert np.array_equal(first.episodes(range(50)).query, second.episodes(range(50)).query)


def test_fewer_items_than_classes_of_an_episode_are_refused(tmp_path: Path) -> None:
    shape = {"n_way": 31, "k_shot": 1, "n_query": 2}
    (pool,) = train_pools(packed(tmp_path), pool_settings(shape=shape), seed=1)
    with pytest.raises(EpisodeError, match="found 30 classes; 31-way 1-shot needs 31"):
        pool.episodes(range(1))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            {"shape": {"n_way": 3, "k_shot": 5, "n_query": 2}},
            "task_pool.meta_train: labels is instances, .* k_shot is 5; next: set k_shot: 1",
        ),
        ({"more_shapes": [{"n_way": 3, "k_shot": 2, "n_query": 2}]}, "k_shot is 2; next: set k_shot: 1"),
        (
            {"sampler": {"name": "within_group"}},
            "labels is instances, .*, and sampler is within_group; next: set sampler: {name: uniform}",
        ),
        ({"sampler": {"name": "hard_classes", "difficulty": "x"}}, "sampler is hard_classes; next: set sampler"),
        ({"labels": {"name": "instance"}}, "task_pool.meta_train.labels.name is 'instance'; .*did you mean instances"),
    ],
)
def test_what_single_items_do_not_allow_is_refused(train: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        params_from(by_instances(**train), source="params.yaml")


def test_queries_that_nothing_changes_are_refused() -> None:
    params = by_instances()
    params["meta_train"]["augment"] = {"support": [{"name": "flip"}], "query": []}
    with pytest.raises(ConfigError, match="augment changes no query, .*; next: set meta_train.augment: {query: "):
        params_from(params, source="params.yaml")
    params["meta_train"]["augment"] = {"support": [{"name": "flip"}]}  # which is for queries too
    assert params_from(params, source="params.yaml").task_pool.meta_train.labels == InstanceLabels()


def test_a_start_from_weights_that_labels_trained_is_refused() -> None:
    params = by_instances() | {"pretrain": {"name": "supervised", "n_steps": 2}}
    params_from(params, source="params.yaml")  # a baseline, from which nothing starts
    params["meta_train"]["initial"] = "pretrained"
    with pytest.raises(ConfigError, match="initial is pretrained by the labels of meta_train; next: set pretrain: "):
        params_from(params, source="params.yaml")
