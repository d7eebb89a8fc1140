from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kshot.data.gather import ResidentItems, item_gather
from kshot.data.packed import PackedDataset
from kshot.episodes.episode import EpisodeShape
from kshot.episodes.loader import EpisodeLoader
from kshot.episodes.pools import ReadAhead, SampledPool
from kshot.episodes.sampling import EpisodeIndices, Uniform
from tests.tiny_dataset import tiny_dataset
from tests.toy_episodes import image_pools


def test_a_store_on_the_device_gathers_and_rotates_the_same_images(tmp_path: Path) -> None:
    tiny = tiny_dataset(n_classes=3, n_images=4)
    tiny.rotations = (0, 90, 180, 270)
    tiny.write(tmp_path / "tiny")
    dataset = PackedDataset.open(tmp_path / "tiny")
    indices = np.arange(4 * dataset.n_stored).reshape(4, -1)
    cpu = torch.device("cpu")
    images, resident = item_gather(dataset, cpu)(indices), ResidentItems(dataset, cpu)
    assert torch.equal(resident(indices), images)
    assert torch.equal(resident(torch.from_numpy(indices)), images)
    assert not torch.equal(images[0], images[1])


def test_episodes_are_drawn_where_the_items_lie(tmp_path: Path) -> None:
    dataset = PackedDataset.open(tiny_dataset(n_classes=6, n_images=5).write(tmp_path / "tiny"))
    shape = EpisodeShape(n_way=3, k_shot=1, n_query=2)
    pool = SampledPool.of_split(dataset.class_table("meta_train"), shape, Uniform(), seed=1, split="meta_train")
    cpu = torch.device("cpu")
    on_host = EpisodeLoader.of_training([pool], item_gather(dataset, cpu))
    beside = EpisodeLoader.of_training([pool], ResidentItems(dataset, cpu))
    assert isinstance(on_host.pool.episodes(range(2)).support, np.ndarray)
    assert isinstance(beside.pool.episodes(range(2)).support, torch.Tensor)
    assert torch.equal(on_host.load(range(9)).query_x, beside.load(range(9)).query_x)


def test_episodes_loaded_in_parts_are_those_loaded_together() -> None:
    loader, _, _ = image_pools()
    numbers = range(3, 8)
    whole = loader.load(numbers)
    parts = [loader.load(numbers[start : start + 2]) for start in range(0, len(numbers), 2)]
    assert [len(part) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part.query_x for part in parts]), whole.query_x)
    assert torch.equal(torch.cat([part.support_y for part in parts]), whole.support_y)
    assert torch.equal(torch.cat([part.keys for part in parts]), whole.keys)
    assert len(whole.keys.unique()) == len(numbers)


def test_a_pool_that_reads_ahead_has_the_same_episodes_in_any_order() -> None:
    pool = image_pools()[0].pool
    ahead = ReadAhead(pool, n_block=8)
    assert ahead.shape == pool.shape
    for numbers in (
        range(1),
        range(1, 3),
        range(7, 10),
        range(3, 4),
        range(100, 102),
        range(20),
        range(0),
        range(19, 20),
    ):
        found, expected = ahead.episodes(numbers), pool.episodes(numbers)
        assert np.array_equal(found.support, expected.support)
        assert np.array_equal(found.query, expected.query)
        assert np.array_equal(found.class_ids, expected.class_ids)


def test_a_pool_that_reads_ahead_draws_a_block_once() -> None:
    pool = image_pools()[0].pool
    assert isinstance(pool, SampledPool)
    drawn: list[int] = []

    @dataclass(frozen=True, kw_only=True)
    class Counted(SampledPool):
        def episodes(self, numbers: range) -> EpisodeIndices:
            drawn.extend(numbers)
            return super().episodes(numbers)

    ahead = ReadAhead(Counted(table=pool.table, shape=pool.shape, sampler=pool.sampler, key=pool.key), n_block=8)
    for step in range(8):
        ahead.episodes(range(2 * step, 2 * step + 2))
    assert drawn == list(range(16))
