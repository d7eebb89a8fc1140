from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from kshot.datasets.packed import PackedDataset
from kshot.episode_loader import image_gather, resident_gather
from kshot.sampling import EpisodeIndices, Int
from kshot.task_pool import ReadAhead, SampledPool
from tests.tiny_dataset import tiny_dataset
from tests.toy_episodes import image_pools


def test_a_store_on_the_device_gathers_and_rotates_the_same_images(tmp_path: Path) -> None:
    tiny = tiny_dataset(n_classes=3, n_images=4)
    tiny.rotations = (0, 90, 180, 270)
    tiny.write(tmp_path / "tiny")
    dataset = PackedDataset.open(tmp_path / "tiny")
    indices = np.arange(4 * dataset.n_stored).reshape(4, -1)
    cpu = torch.device("cpu")
    images = image_gather(dataset, cpu)(indices)
    assert torch.equal(resident_gather(dataset, cpu)(indices), images)
    assert not torch.equal(images[0], images[1])


def test_episodes_loaded_in_parts_are_those_loaded_together() -> None:
    loader, _, _ = image_pools()
    numbers = np.array([3, 9, 4, 17, 5])
    whole = loader.load(numbers)
    parts = list(loader.load_in_parts(numbers, 2))
    assert [len(part) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part.query_x for part in parts]), whole.query_x)
    assert torch.equal(torch.cat([part.support_y for part in parts]), whole.support_y)


def test_a_pool_that_reads_ahead_has_the_same_episodes_in_any_order() -> None:
    pool = image_pools()[0].pool
    ahead = ReadAhead(pool, n_block=8)
    assert ahead.shape == pool.shape
    for numbers in ([0], [1, 2], [7, 9], [3], [100, 2], np.arange(20), [], [19]):
        found, expected = ahead.episodes(np.array(numbers, dtype=np.int64)), pool.episodes(np.array(numbers, np.int64))
        assert np.array_equal(found.support, expected.support)
        assert np.array_equal(found.query, expected.query)
        assert np.array_equal(found.class_ids, expected.class_ids)


def test_a_pool_that_reads_ahead_draws_a_block_once() -> None:
    pool = image_pools()[0].pool
    assert isinstance(pool, SampledPool)
    drawn: list[int] = []

    @dataclass(frozen=True, kw_only=True)
    class Counted(SampledPool):
        def episodes(self, numbers: Int) -> EpisodeIndices:
            drawn.extend(numbers.tolist())
            return super().episodes(numbers)

    ahead = ReadAhead(Counted(table=pool.table, shape=pool.shape, sampler=pool.sampler, key=pool.key), n_block=8)
    for step in range(8):
        ahead.episodes(np.arange(2) + 2 * step)
    assert drawn == list(range(16))
