from pathlib import Path

import numpy as np
import pytest

from kshot.episodes.episode import EpisodeShape
from kshot.episodes.pools import FrozenPool, SampledPool
from kshot.episodes.sampling import Uniform
from kshot.errors import DataError
from tests.toy_episodes import class_table

SHAPE = EpisodeShape(n_way=4, k_shot=1, n_query=3)
LABELS = np.repeat(np.arange(30), 6)


def pool(seed: int = 1, split: str = "meta_val") -> SampledPool:
    return SampledPool.of_split(class_table(LABELS, np.arange(30)), SHAPE, Uniform(), seed=seed, split=split)


def test_a_frozen_pool_holds_the_episodes_that_the_sampled_pool_gives() -> None:
    frozen, sampled = pool().freeze(600), pool()
    assert len(frozen) == 600
    for wanted in (range(1), range(255, 257), range(590, 600)):
        assert (frozen.episodes(wanted).query == sampled.episodes(wanted).query).all()


def test_a_pool_survives_the_disk_with_its_hash(tmp_path: Path) -> None:
    frozen = pool().freeze(20)
    (tmp_path / "pool").write_bytes(frozen.to_bytes())
    loaded = FrozenPool.load(tmp_path / "pool")
    assert loaded.shape == SHAPE
    assert loaded.hash == frozen.hash
    assert (loaded.indices.support == frozen.indices.support).all()


def test_the_hash_tells_seeds_splits_and_lengths_apart() -> None:
    hashes = {
        pool().freeze(20).hash,
        pool(seed=2).freeze(20).hash,
        pool(split="meta_test").freeze(20).hash,
        pool().freeze(21).hash,
    }
    assert len(hashes) == 4


def test_a_missing_or_broken_pool_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no task pool at .*next: kshot pool"):
        FrozenPool.load(tmp_path / "none")
    (tmp_path / "broken").write_bytes(b"text")
    with pytest.raises(DataError, match="is not a task pool .*next: kshot pool"):
        FrozenPool.load(tmp_path / "broken")
