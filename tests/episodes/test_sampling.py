from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kshot.data.class_table import ClassTable
from kshot.episodes.episode import EpisodeShape
from kshot.episodes.sampling import (
    AcrossDomains,
    ClassWeighted,
    HardClasses,
    Uniform,
    WithinDomain,
    WithinGroup,
    _surely_enough,
    sample_episodes,
)
from kshot.errors import EpisodeError
from kshot.seeding import stream_key

KEY = stream_key(1, "test")
NAMES = ("ink", "oil", "pen", "wax", "wood")
SAMPLERS = [Uniform(), ClassWeighted(), WithinGroup(), AcrossDomains()]
WITHIN = WithinDomain(weights=(("ink", 3.0),))
HARD = HardClasses(difficulty="x", exponent=2.0)


def table(counts: list[int], groups: list[int] | None = None, n_domains: int = 3) -> ClassTable:
    labels = np.repeat(np.arange(len(counts)), counts)
    shuffled = np.random.default_rng(0).permutation(labels)
    domains = np.random.default_rng(1).integers(0, n_domains, len(labels))
    of_classes = np.array(groups or [0] * len(counts))
    found = ClassTable.from_labels(shuffled, np.arange(len(counts)), of_classes, domains, NAMES[:n_domains])
    return replace(found, error_rates=np.random.default_rng(2).uniform(0.05, 0.9, len(counts)))


def test_the_table_lists_every_item_under_its_class() -> None:
    labels = np.array([2, 0, 2, 1, 0, 2])
    found = ClassTable.from_labels(labels, np.array([0, 2]), np.array([7, 8, 9]))
    assert found.counts.tolist() == [2, 3]
    assert found.items.tolist() == [[1, 4, -1], [0, 2, 5]]
    assert found.groups.tolist() == [0, 1] and found.group_sizes.tolist() == [1, 1]
    assert (found.smallest_class, found.largest_group) == (2, 1)


@given(
    n_way=st.integers(2, 5),
    k_shot=st.integers(1, 3),
    n_query=st.integers(1, 3),
    counts=st.lists(st.integers(6, 40), min_size=5, max_size=30),
    seed=st.integers(0, 2**32),
)
def test_every_episode_has_distinct_classes_and_items_of_the_right_class(
    n_way: int, k_shot: int, n_query: int, counts: list[int], seed: int
) -> None:
    classes = table(counts)
    label_of = {int(i): c for c, row in enumerate(classes.items) for i in row if i >= 0}
    shape = EpisodeShape(n_way=n_way, k_shot=k_shot, n_query=n_query)
    for sampler in SAMPLERS:
        episodes = sample_episodes(classes, shape, sampler, stream_key(seed, "x"), np.arange(6))
        for support, query, class_ids in zip(episodes.support, episodes.query, episodes.class_ids, strict=True):
            assert len(set(class_ids.tolist())) == n_way
            items = np.concatenate([support, query], axis=1)
            assert len(set(items.ravel().tolist())) == items.size
            found = [[label_of[i] for i in row] for row in items.tolist()]
            assert found == [[c] * shape.items_per_class for c in class_ids.tolist()]


@given(
    n_domains=st.integers(2, 5),
    per_domain=st.integers(1, 4),
    k_shot=st.integers(1, 4),
    n_query=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_support_is_of_one_domain_and_queries_of_others_where_the_items_allow(
    n_domains: int, per_domain: int, k_shot: int, n_query: int, seed: int
) -> None:
    n_classes, n_items = 6, n_domains * per_domain
    k_shot, n_query = min(k_shot, n_items - 1), min(n_query, n_items - min(k_shot, n_items - 1))
    domains = np.tile(np.repeat(np.arange(n_domains), per_domain), n_classes)
    labels = np.repeat(np.arange(n_classes), n_items)
    classes = ClassTable.from_labels(
        labels, np.arange(n_classes), np.zeros(n_classes, dtype=np.int64), domains, NAMES[:n_domains]
    )
    shape = EpisodeShape(n_way=4, k_shot=k_shot, n_query=n_query)
    episodes = sample_episodes(classes, shape, AcrossDomains(), stream_key(seed, "x"), np.arange(8))
    for support, query in zip(domains[episodes.support], domains[episodes.query], strict=True):
        assert len({tuple(sorted(row)) for row in support.tolist()}) == 1  # the same domains for every class
        assert len(set(support[0])) == -(-k_shot // per_domain)
        if -(-k_shot // per_domain) + -(-n_query // per_domain) <= n_domains:
            assert not set(support.ravel()) & set(query.ravel())


def test_every_domain_has_its_turn_as_that_of_the_support() -> None:
    domains = np.tile(np.arange(4), 5)
    classes = ClassTable.from_labels(
        np.repeat(np.arange(5), 4), np.arange(5), np.zeros(5, dtype=np.int64), domains, NAMES[:4]
    )
    shape = EpisodeShape(n_way=2, k_shot=1, n_query=1)
    support = domains[sample_episodes(classes, shape, AcrossDomains(), KEY, np.arange(4_000)).support[:, 0, 0]]
    assert np.bincount(support).min() > 900


def test_episodes_across_domains_need_domains() -> None:
    classes = table([8] * 6, n_domains=1)
    with pytest.raises(
        EpisodeError, match=r"found 1 domain; episodes across domains need at least 2; next: ingest with"
    ):
        sample_episodes(classes, EpisodeShape(n_way=2, k_shot=1, n_query=1), AcrossDomains(), KEY, np.arange(1))


def of_domains(counts: list[list[int]]) -> ClassTable:
    """Of so many items for each class and domain, in the order of the classes and in each of the domains."""
    labels = np.repeat(np.arange(len(counts)), [sum(row) for row in counts])
    domains = np.concatenate([np.repeat(np.arange(len(row)), row) for row in counts])
    groups = np.zeros(len(counts), dtype=np.int64)
    return ClassTable.from_labels(labels, np.arange(len(counts)), groups, domains, NAMES[: len(counts[0])])


def domains_of(classes: ClassTable, items: np.ndarray) -> np.ndarray:
    assert classes.domains is not None
    of_item = dict(zip(classes.items.ravel().tolist(), classes.domains.ravel().tolist(), strict=True))
    return np.vectorize(of_item.__getitem__)(items)


def test_all_items_of_an_episode_are_of_one_domain_drawn_by_weight() -> None:
    classes = of_domains([[4, 5, 9]] * 8)
    shape = EpisodeShape(n_way=3, k_shot=1, n_query=3)
    sampler = WithinDomain(weights=(("ink", 3.0), ("pen", 0.0)))
    episodes = sample_episodes(classes, shape, sampler, KEY, np.arange(4_000))
    items = np.concatenate([episodes.support, episodes.query], axis=2)
    found = domains_of(classes, items).reshape(4_000, -1)
    assert (found == found[:, :1]).all()
    shares = np.bincount(found[:, 0], minlength=3) / 4_000
    assert shares[2] == 0 and abs(shares[0] - 0.75) < 0.03
    assert all(len(set(row.ravel().tolist())) == row.size for row in items[:200])


def test_classes_without_enough_items_in_the_domain_are_passed_over_and_so_are_domains_without_enough_classes() -> None:
    classes = of_domains([[4, 0, 9], [4, 4, 9], [4, 4, 0], [1, 4, 0]])
    shape = EpisodeShape(n_way=3, k_shot=1, n_query=3)
    episodes = sample_episodes(classes, shape, WithinDomain(), KEY, np.arange(400))
    found = domains_of(classes, episodes.support)[:, 0, 0]
    assert set(found.tolist()) == {0, 1}
    assert {tuple(sorted(row)) for row in episodes.class_ids[found == 0].tolist()} == {(0, 1, 2)}
    assert {tuple(sorted(row)) for row in episodes.class_ids[found == 1].tolist()} == {(1, 2, 3)}


@pytest.mark.parametrize(
    ("counts", "weights", "message"),
    [
        ([[9, 9]] * 4, {"oyl": 2.0}, r"names the domain 'oyl'; needed one of 'ink', 'oil'$"),
        ([[9, 1]] * 4, {"oil": 2.0}, r"'oil' has 0 classes of at least 4 items; 3-way 1-shot with 3 queries.*needs 3;"),
        ([[9, 1]] * 2 + [[1, 1]], {}, r"'ink' has 2 classes of at least 4 items; .* next: fewer classes"),
        ([[9, 9]] * 4, {"ink": 0.0, "oil": 0.0}, r"next: .* or weight 0"),
    ],
)
def test_episodes_within_a_domain_are_refused_where_there_are_none(
    counts: list[list[int]], weights: dict[str, float], message: str
) -> None:
    sampler = WithinDomain(weights=tuple(weights.items()))
    with pytest.raises(EpisodeError, match=message):
        sample_episodes(of_domains(counts), EpisodeShape(n_way=3, k_shot=1, n_query=3), sampler, KEY, np.arange(1))


def test_hard_classes_are_drawn_by_their_error_rates() -> None:
    classes = replace(table([6] * 4), error_rates=np.array([0.1, 0.2, 0.3, 0.4]))
    shape = EpisodeShape(n_way=2, k_shot=1, n_query=1)
    drawn = sample_episodes(classes, shape, HardClasses(difficulty="x"), KEY, np.arange(20_000)).class_ids
    first = [0.1, 0.2, 0.3, 0.4]
    expected = [p + sum(q * p / (1 - q) for q in first if q != p) for p in first]  # drawn first, or after another
    assert np.bincount(drawn.ravel()) / 20_000 == pytest.approx(expected, abs=0.02)
    cubed = sample_episodes(classes, shape, HardClasses(difficulty="x", exponent=3.0), KEY, np.arange(20_000)).class_ids
    assert (cubed == 3).sum() > (drawn == 3).sum() and (cubed == 0).sum() > 0


def test_episodes_within_a_domain_need_domains() -> None:
    classes = ClassTable.from_labels(np.repeat(np.arange(4), 5), np.arange(4), np.zeros(4, dtype=np.int64))
    with pytest.raises(EpisodeError, match="found no domains; episodes within a domain need them; next: ingest with"):
        sample_episodes(classes, EpisodeShape(n_way=2, k_shot=1, n_query=1), WithinDomain(), KEY, np.arange(1))


@pytest.mark.parametrize("sampler", [*SAMPLERS, WITHIN, HARD], ids=lambda s: s.name)
def test_an_episode_is_the_same_alone_in_a_batch_and_in_another_order(sampler: Uniform) -> None:
    classes, shape = table([40] * 30, [0] * 15 + [1] * 15), EpisodeShape(n_way=5, k_shot=2, n_query=3)
    batch = sample_episodes(classes, shape, sampler, KEY, np.arange(50))
    backwards = sample_episodes(classes, shape, sampler, KEY, np.arange(50)[::-1])
    alone = sample_episodes(classes, shape, sampler, KEY, np.array([17]))
    assert (batch.support[17] == alone.support[0]).all() and (batch.query[17] == alone.query[0]).all()
    assert (backwards.query[::-1] == batch.query).all()


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))]
TABLES = {
    "few": ([24] * 12, [0] * 6 + [1] * 6),
    "many classes": ([14] * 400, [0, 1, 2, 3] * 100),
    "many items": ([90] * 30, [0] * 30),
    "unequal": ([5, 200, 6, 60] * 10, [0, 0, 1, 1] * 10),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sampler", [*SAMPLERS, WITHIN, HARD], ids=lambda s: s.name)
@pytest.mark.parametrize("name", TABLES)
def test_a_device_draws_the_episodes_that_the_host_draws(name: str, sampler: Uniform, device: str) -> None:
    classes, shape = table(*TABLES[name]), EpisodeShape(n_way=5, k_shot=2, n_query=3)
    key = stream_key(7, name)
    host = sample_episodes(classes, shape, sampler, key, np.arange(400))
    beside = classes.on(torch.device(device))
    drawn = sample_episodes(beside, shape, sampler, key, beside.numbers(range(400)))
    assert drawn.support.device.type == device
    assert np.array_equal(drawn.support.cpu().numpy(), host.support)
    assert np.array_equal(drawn.query.cpu().numpy(), host.query)
    assert np.array_equal(drawn.class_ids.cpu().numpy(), host.class_ids)


def test_a_sequence_without_a_look_is_long_enough_for_its_distinct_numbers() -> None:
    """A device draws as many numbers as hold enough distinct ones but once in 2**64 times."""
    for count, size in [(1, 1), (2, 2), (5, 5), (5, 40), (16, 65), (60, 4112)]:
        n_drawn = _surely_enough(count, size)
        # exactly: the chance that n numbers take fewer than `count` values, by the number of values so far
        so_far = np.zeros(count)  # of 0..count-1 values
        so_far[0] = 1
        for _ in range(n_drawn):
            again = np.arange(count) / size
            so_far = so_far * again + np.concatenate([[0], (so_far * (1 - again))[:-1]])
        assert 0 <= so_far.sum() <= 2.0**-64
        assert n_drawn >= count


def test_episodes_of_a_seed_are_pinned() -> None:
    """Frozen pools of every user hang on these numbers."""
    found = sample_episodes(table([20] * 100), EpisodeShape(n_way=3, k_shot=1, n_query=1), Uniform(), KEY, np.arange(2))
    assert found.class_ids.tolist() == [[32, 2, 69], [99, 51, 63]]
    assert found.support[..., 0].tolist() == [[1002, 350, 952], [1405, 1551, 532]]


@pytest.mark.parametrize(("n_classes", "n_items"), [(10, 6), (20, 6), (10, 20)], ids=["few", "classes", "items"])
def test_classes_items_and_label_positions_are_equally_likely(n_classes: int, n_items: int) -> None:
    """Few candidates are drawn by keys, many as the first distinct ones of a sequence."""
    classes, shape = table([n_items] * n_classes), EpisodeShape(n_way=4, k_shot=1, n_query=2)
    episodes = sample_episodes(classes, shape, Uniform(), KEY, np.arange(20_000))
    for position in range(4):
        counts = np.bincount(episodes.class_ids[:, position], minlength=n_classes)
        assert np.abs(counts - 20_000 / n_classes).max() < 5 * np.sqrt(20_000 / n_classes)
    for drawn in (episodes.support, episodes.query[:, :, :1], episodes.query[:, :, 1:]):
        items = np.bincount(drawn.ravel(), minlength=n_classes * n_items)
        expected = drawn.size / (n_classes * n_items)
        assert np.abs(items - expected).max() < 5 * np.sqrt(expected)


def test_classes_of_very_unequal_size_share_an_episode() -> None:
    classes, shape = table([3, 200, 3, 200, 3, 200] * 4), EpisodeShape(n_way=4, k_shot=1, n_query=2)
    episodes = sample_episodes(classes, shape, Uniform(), KEY, np.arange(200))
    items = np.concatenate([episodes.support, episodes.query], axis=2)
    assert all(len(set(row.ravel().tolist())) == 12 for row in items)
    assert (items >= 0).all()


def test_weighted_sampling_prefers_classes_with_more_items() -> None:
    classes, shape = table([4, 16] * 10), EpisodeShape(n_way=2, k_shot=1, n_query=1)
    episodes = sample_episodes(classes, shape, ClassWeighted(exponent=1.0), KEY, np.arange(20_000))
    first = np.bincount(episodes.class_ids[:, 0] % 2)
    assert first[1] / first[0] == pytest.approx(4.0, rel=0.06)


def test_within_group_episodes_keep_to_one_group_and_visit_groups_by_size() -> None:
    groups = [0] * 4 + [1] * 12 + [2] * 2
    classes, shape = table([5] * 18, groups), EpisodeShape(n_way=3, k_shot=1, n_query=1)
    episodes = sample_episodes(classes, shape, WithinGroup(), KEY, np.arange(8000))
    found = np.array(groups)[episodes.class_ids]
    assert (found == found[:, :1]).all()
    share = np.bincount(found[:, 0], minlength=3) / 8000
    assert share[2] == 0
    assert share[1] == pytest.approx(0.75, abs=0.03)


def test_too_few_items_classes_or_group_members_are_refused() -> None:
    shape = EpisodeShape(n_way=3, k_shot=2, n_query=2)
    with pytest.raises(EpisodeError, match="1 classes have fewer than 4 items, the smallest 3"):
        sample_episodes(table([4, 4, 3]), shape, Uniform(), KEY, np.arange(1))
    with pytest.raises(EpisodeError, match="found 2 classes; 3-way 2-shot needs 3"):
        sample_episodes(table([4, 4]), shape, Uniform(), KEY, np.arange(1))
    with pytest.raises(EpisodeError, match="largest group has 2 classes"):
        sample_episodes(table([4] * 4, [0, 0, 1, 1]), shape, WithinGroup(), KEY, np.arange(1))
