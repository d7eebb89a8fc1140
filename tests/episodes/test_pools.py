import re
from pathlib import Path

import numpy as np
import pytest

from kshot.data.class_table import ClassTable
from kshot.episodes import pools
from kshot.episodes.episode import EpisodeShape
from kshot.episodes.pools import FrozenPool, SampledPool
from kshot.episodes.sampling import ClassWeighted, SamplerConfig, Uniform, WithinDomain, WithinGroup
from kshot.errors import DataError
from tests.toy_episodes import class_table

SHAPE = EpisodeShape(n_way=4, k_shot=1, n_query=3)
UNIFORM = Uniform()
LABELS = np.repeat(np.arange(30), 6)


def pool(seed: int = 1, split: str = "meta_val", sampler: SamplerConfig = UNIFORM) -> SampledPool:
    return SampledPool.of_split(class_table(LABELS, np.arange(30)), SHAPE, sampler, seed=seed, split=split)


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


@pytest.mark.parametrize(
    ("sampler", "pinned"),
    [
        (Uniform(), "c60fda7d594cf6d6b5238cd132ba0e629da32e081a2a642c3599eb75043a68f7"),
        (WithinGroup(), "d71c7b678811dfc14917f6a56926ed09e14767b2cb7f8e49af5be4b1bfb1b9b4"),
        (ClassWeighted(), "540862b9e55b41630cade05194777f7901fc6364c2986b12b8a05af25d024546"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_draws_of_a_pool_never_change(sampler: SamplerConfig, pinned: str) -> None:
    """Pinned: versions of a model are compared on the same episodes over years."""
    table = ClassTable.from_labels(LABELS, np.arange(30), np.arange(30) // 10)
    assert SampledPool.of_split(table, SHAPE, sampler, seed=1, split="meta_val").freeze(20).hash == pinned


def test_other_words_for_a_shape_or_a_sampler_draw_the_same_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {sampler: pool(sampler=sampler).key for sampler in (Uniform(), WithinGroup(), ClassWeighted())}
    for worded in (EpisodeShape, Uniform, WithinGroup, ClassWeighted):
        monkeypatch.setattr(worded, "__str__", lambda self: "in other words")
    assert str(SHAPE) == "in other words"
    assert {sampler: pool(sampler=sampler).key for sampler in drawn} == drawn


def test_two_exponents_have_draws_and_names_of_their_own() -> None:
    samplers = [ClassWeighted(exponent=exponent) for exponent in (0.5, 1.0, -1.0, 1.0000001)]
    assert len({int(pool(sampler=sampler).key) for sampler in samplers}) == len(samplers)
    settings = tuple(pools.TestSetting(n_way=5, k_shot=1, sampler=sampler) for sampler in samplers)
    kinds = pools.TestPoolSettings(n_episodes=2, n_query=3, settings=settings).kinds()
    assert list(kinds) == [
        "5w1s-class_weighted",
        "5w1s-class_weighted_1.0",
        "5w1s-class_weighted_-1.0",
        "5w1s-class_weighted_1.0000001",
    ]


def test_names_of_domains_that_no_file_can_have_are_replaced_in_the_name_of_a_setting() -> None:
    plain, odd, many = (
        pools.TestSetting(n_way=5, k_shot=1, sampler=WithinDomain(weights=tuple((name, 1.0) for name in names))).name
        for names in (["ink", "oil"], ["ink: (old)"], [f"style-{number:02d}" for number in range(40)])
    )
    assert plain == "5w1s-within_domain_ink_1.0_oil_1.0"
    assert re.fullmatch(r"5w1s-within_domain-[0-9a-f]{12}", odd) and re.fullmatch(
        r"5w1s-within_domain-[0-9a-f]{12}", many
    )
    assert odd != many


def test_a_setting_that_stands_there_twice_is_refused() -> None:
    one, same = pools.TestSetting(n_way=5, k_shot=1), pools.TestSetting(n_way=5, k_shot=1, sampler=Uniform())
    with pytest.raises(ValueError, match="5-way 1-shot stands there twice"):
        pools.TestPoolSettings(n_episodes=2, n_query=3, settings=(one, same))


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
