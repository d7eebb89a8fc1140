from hashlib import sha256
from io import BytesIO
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kshot.data.items.thumbnails import difference_hash, thumbnails
from kshot.data.packed import PackedDataset
from kshot.episodes.episode import EpisodeShape
from kshot.episodes.sampling import EpisodeKind, SamplerConfig, Uniform, WithinGroup
from kshot.validation import near_duplicates
from kshot.validation.facts import Facts, FactSettings, collect_facts, read_items
from kshot.validation.near_duplicates import near_pairs
from tests.tiny_dataset import SIZE_PX, TinyDataset, noise, tiny_dataset

UNIFORM = Uniform()


def kind(n_way: int, k_shot: int, n_query: int, sampler: SamplerConfig = UNIFORM) -> EpisodeKind:
    return EpisodeKind(shape=EpisodeShape(n_way=n_way, k_shot=k_shot, n_query=n_query), sampler=sampler)


KINDS = {
    "meta_train": (kind(4, 1, 2),),
    "meta_val": (kind(2, 1, 2),),
    "meta_test": (kind(2, 1, 3), kind(3, 2, 3)),
}


def facts_of(tiny: TinyDataset, tmp_path: Path, settings: FactSettings | None = None, kinds=None) -> Facts:
    dataset = PackedDataset.open(tiny.write(tmp_path / "tiny"))
    return collect_facts(dataset, KINDS | (kinds or {}), settings or FactSettings(), seed=1)


def test_pixel_statistics_are_those_of_numpy(tmp_path):
    tiny = tiny_dataset(channels=3)
    items = facts_of(tiny, tmp_path).items
    flat = tiny.pixels.reshape(len(tiny.pixels), -1).astype(np.float64)
    np.testing.assert_allclose(items["mean"], flat.mean(axis=1), atol=1e-9)
    np.testing.assert_allclose(items["std"], flat.std(axis=1), atol=1e-9)
    np.testing.assert_array_equal(items["min"], flat.min(axis=1))
    np.testing.assert_array_equal(items["max"], flat.max(axis=1))
    assert items["content_sha256"].tolist() == [sha256(item.tobytes()).hexdigest() for item in tiny.pixels]
    assert items["sha256_matches"].all()


def test_facts_do_not_depend_on_how_items_are_cut_into_shards(tmp_path):
    tiny = tiny_dataset()
    one = PackedDataset.open(tiny.write(tmp_path / "one", items_per_shard=1000))
    many = PackedDataset.open(tiny.write(tmp_path / "many", items_per_shard=7))
    first, second = (collect_facts(dataset, KINDS, FactSettings(), seed=1) for dataset in (one, many))
    assert first.items.equals(second.items)


def test_an_item_is_blank_below_the_spread_that_is_asked_for(tmp_path):
    tiny = tiny_dataset()
    tiny.pixels[3] = 200
    tiny.pixels[4] = noise(1, seed=99, low=100, high=103)[0]  # std 0.8
    assert facts_of(tiny, tmp_path / "a").items["blank"].to_numpy().nonzero()[0].tolist() == [3, 4]
    strict = facts_of(tiny, tmp_path / "b", FactSettings(blank_std=0.5))
    assert strict.items["blank"].to_numpy().nonzero()[0].tolist() == [3]


def test_a_changed_pixel_no_longer_matches_the_manifest(tmp_path):
    folder = tiny_dataset().write(tmp_path / "tiny")
    shard = folder / "items-00001.npy"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1  # in the last item of the shard, number 79 less the 20 of the third
    shard.write_bytes(content)
    items = collect_facts(PackedDataset.open(folder), KINDS, FactSettings(), seed=1).items
    assert items.index[~items["sha256_matches"]].tolist() == [59]


def test_items_of_a_shard_with_another_dtype_are_unreadable_and_the_others_are_measured(tmp_path):
    folder = tiny_dataset().write(tmp_path / "tiny")
    stored = np.load(folder / "items-00000.npy")
    np.save(folder / "items-00000.npy", stored.astype(np.int8))
    facts = collect_facts(PackedDataset.open(folder), KINDS, FactSettings(), seed=1)
    assert facts.shards["found"].tolist() == ["int8 40 x 16 x 16 x 1", "uint8 20 x 16 x 16 x 1"]
    assert facts.shards["needed"][0] == "uint8 40 x 16 x 16 x 1"
    assert facts.items["readable"].tolist() == [False] * 40 + [True] * 20
    assert facts.items["mean"].notna().tolist() == facts.items["readable"].tolist()


def test_identical_images_are_counted_by_class_and_by_split_and_blank_ones_are_not(tmp_path):
    tiny = tiny_dataset()
    other_class, other_split = tiny.rows("train/c1")[0], tiny.rows("test/c0")[0]
    tiny.pixels[other_class] = tiny.pixels[0]
    tiny.pixels[other_split] = tiny.pixels[0]
    tiny.pixels[[6, 7]] = tiny.pixels[8]
    tiny.pixels[[1, 21]] = 0
    items = facts_of(tiny, tmp_path).items
    assert items["classes_sharing"][[0, other_class, other_split]].tolist() == [3, 3, 3]
    assert items["splits_sharing"][[0, other_class, other_split]].tolist() == [2, 2, 2]
    assert items["copies"][[6, 7, 8]].tolist() == [3, 3, 3]
    assert items[["classes_sharing", "splits_sharing"]].loc[[1, 6, 21]].to_numpy().tolist() == [[1, 1]] * 3


def test_classes_are_counted_against_every_shape_of_their_own_split(tmp_path):
    tiny = tiny_dataset()
    tiny.drop(tiny.rows("test/c1")[:1])
    tiny.splits["meta_val"].append("val/empty")
    table = facts_of(tiny, tmp_path).class_shapes
    short = table[table["items_found"] < table["items_needed"]]
    assert short[["split", "class", "shape", "items_found", "items_needed"]].to_numpy().tolist() == [
        ["meta_val", "val/empty", "2-way 1-shot", 0, 3],
        ["meta_test", "test/c1", "3-way 2-shot", 4, 5],
    ]
    assert len(table) == 4 + 5 + 4 * 2


def test_rotations_multiply_the_classes_of_a_split(tmp_path):
    tiny = tiny_dataset()
    tiny.rotations = (0, 90, 180, 270)
    assert facts_of(tiny, tmp_path).split_shapes["classes_found"].tolist() == [16, 16, 16, 16]


def test_within_group_sampling_can_draw_from_the_largest_group_only(tmp_path):
    tiny = tiny_dataset()
    tiny.manifest.loc[tiny.rows("train/c0"), "group"] = "other"
    facts = facts_of(tiny, tmp_path, kinds={"meta_train": (kind(4, 1, 2, WithinGroup()),)})
    assert facts.split_shapes["classes_found"].tolist() == [3, 4, 4, 4]
    assert facts.split_shapes["where"][0] == "in its largest group"


def test_classes_in_two_splits_two_groups_or_no_split_are_told(tmp_path):
    tiny = tiny_dataset()
    tiny.splits["meta_test"].append("train/c1")
    tiny.manifest.loc[tiny.rows("val/c2")[0], "group"] = "other"
    tiny.append(noise(2, seed=77), "lost")
    facts = facts_of(tiny, tmp_path)
    classes = facts.classes.set_index("class")
    assert classes["splits"][["train/c0", "train/c1", "lost"]].tolist() == [1, 2, 0]
    assert classes["groups"][["train/c0", "val/c2"]].tolist() == [1, 2]
    assert facts.items.loc[facts.items["class"] == "lost", "split"].tolist() == ["", ""]


def test_class_names_that_differ_in_case_or_composition_are_twins(tmp_path):
    tiny = tiny_dataset()
    composed, decomposed = "train/caf\u00e9", "train/cafe\u0301"
    tiny.manifest["class"] = tiny.manifest["class"].replace(
        {"train/c0": composed, "train/c1": decomposed, "val/c0": "Val/C1"}
    )
    classes = facts_of(tiny, tmp_path).classes.set_index("class")
    assert classes["twins"][[composed, decomposed, "Val/C1", "val/c1", "val/c2"]].tolist() == [2, 2, 2, 2, 1]


def test_missing_values_are_counted_but_a_group_may_be_empty(tmp_path):
    tiny = tiny_dataset()
    tiny.manifest["group"] = ""
    tiny.manifest.loc[[0, 1], "source"] = None
    tiny.manifest.loc[5, "id"] = ""
    missing = facts_of(tiny, tmp_path).columns.set_index("column")["missing"]
    assert missing[missing > 0].to_dict() == {"id": 1, "source": 2}


def test_one_version_has_no_drift(tmp_path):
    assert facts_of(tiny_dataset(), tmp_path).drift is None


def test_a_darker_last_version_is_a_shift_and_more_of_the_same_is_none(tmp_path):
    same, darker = tiny_dataset(), tiny_dataset()
    for number in range(4):
        same.append(noise(5, seed=500 + number), f"train/c{number}", version=2)
        darker.append(noise(5, seed=500 + number, high=128), f"train/c{number}", version=2)
    darker.append(noise(5, seed=600, high=128), "train/new", version=2)
    none, shift = facts_of(same, tmp_path / "a").drift, facts_of(darker, tmp_path / "b").drift
    assert none is not None
    assert shift is not None
    assert none.mean.at_least == none.std.at_least == none.new_classes == 0
    assert shift.version == 2
    assert (shift.items_before, shift.items_after, shift.new_classes) == (60, 25, 1)
    assert shift.mean.before == pytest.approx(127.5, abs=2)
    assert shift.mean.after == pytest.approx(63.5, abs=2)
    assert 60 < shift.mean.at_least < 66
    assert 34 < shift.std.at_least < 38
    # 4 of 12 classes go from 5 to 10 items: shares from 1/12 to 10/80, eight others from 1/12 to 5/80
    assert shift.class_shift == pytest.approx(4 * (10 / 80 - 1 / 12))


def test_a_few_new_items_are_no_shift_by_chance(tmp_path):
    tiny = tiny_dataset()
    for row in range(len(tiny.pixels)):
        tiny.pixels[row] //= 1 + row % 4  # items differ widely in brightness
    tiny.append(noise(2, seed=700) // 2, "train/c0", version=2)
    drift = facts_of(tiny, tmp_path).drift
    assert drift is not None
    assert abs(drift.mean.after - drift.mean.before) > 0
    assert drift.mean.at_least == 0


def test_reencoded_and_rescaled_copies_are_near_duplicates_with_their_place(tmp_path):
    tiny = tiny_dataset()
    x = np.linspace(0, 2 * np.pi, SIZE_PX)
    for row in range(len(tiny.pixels)):
        waves = np.sin(x * (1 + row % 3) + row) + np.cos(x[:, None] * (1 + row % 5) + row * 0.7)
        tiny.pixels[row, :, :, 0] = (waves - waves.min()) / np.ptp(waves) * 255
    assert len(facts_of(tiny, tmp_path / "without").near_duplicates) == 0
    neighbour, elsewhere, sibling = tiny.rows("train/c1")[2], tiny.rows("val/c1")[0], tiny.rows("train/c0")[4]
    tiny.pixels[neighbour] = _as_jpeg(tiny.pixels[0])
    tiny.pixels[elsewhere] = (tiny.pixels[0] * 0.8 + 20).astype(np.uint8)
    tiny.pixels[sibling] = _as_jpeg(tiny.pixels[0]) // 2  # same class: not a wrong label
    near = facts_of(tiny, tmp_path / "with").near_duplicates
    found = {frozenset(pair) for pair in zip(near.first, near.second, strict=True)}
    assert {frozenset({0, neighbour}), frozenset({0, elsewhere}), frozenset({neighbour, elsewhere})} <= found
    assert all(
        sibling in pair for pair in found - {frozenset(pair) for pair in combinations((0, neighbour, elsewhere), 2)}
    )
    assert near.across_splits == sum(elsewhere in pair for pair in found)
    assert near.n_compared == len(tiny.pixels)


def _as_jpeg(item: np.ndarray) -> np.ndarray:
    buffer = BytesIO()
    Image.fromarray(item[:, :, 0]).save(buffer, format="JPEG", quality=60)
    return np.asarray(Image.open(buffer))[:, :, None]


def test_banded_search_finds_exactly_the_pairs_of_a_full_search():
    rng = np.random.default_rng(5)
    centres = rng.integers(0, 2**64, 40, dtype=np.uint64)
    flips = np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 64, (300, 4)).astype(np.uint64), axis=1)
    hashes = centres[rng.integers(0, 40, 300)] ^ flips * rng.integers(0, 2, 300).astype(np.uint64)
    labels, contents = rng.integers(0, 5, 300), rng.integers(0, 250, 300)
    grey = np.tile(np.arange(16, dtype=np.uint8), (300, 1))  # every pair correlates
    for max_bits in (0, 3, 8):
        pairs = near_pairs(hashes, grey, labels, contents, max_bits=max_bits, min_correlation=0.9)
        wanted = {
            (i, j)
            for i, j in combinations(range(300), 2)
            if labels[i] != labels[j]
            and contents[i] != contents[j]
            and int(hashes[i] ^ hashes[j]).bit_count() <= max_bits
        }
        assert len(pairs.first) == len(wanted)
        assert set(zip(pairs.first, pairs.second, strict=True)) == wanted


def test_counting_stops_where_it_tells_no_more(monkeypatch):
    monkeypatch.setattr(near_duplicates, "_CANDIDATE_LIMIT", 10)
    alike = np.tile(np.arange(16, dtype=np.uint8), (8, 1))
    hashes, different = np.zeros(8, dtype=np.uint64), np.arange(8)
    few = near_pairs(hashes[:4], alike[:4], different[:4], different[:4], max_bits=0, min_correlation=0.9)
    many = near_pairs(hashes, alike, different, different, max_bits=0, min_correlation=0.9)
    assert (len(few.first), few.complete) == (6, True)
    assert not many.complete


def test_correlation_confirms_what_the_hash_proposes():
    pixels = np.zeros((2, SIZE_PX, SIZE_PX, 1), dtype=np.uint8)
    pixels[0, :, 3], pixels[1, :, 3] = 250, np.arange(0, 250, 16)[:SIZE_PX, None]
    grey, different = thumbnails(pixels), np.arange(2)
    hashes = np.zeros(2, dtype=np.uint64)
    assert len(near_pairs(hashes, grey, different, different, max_bits=0, min_correlation=0.99).first) == 0
    assert len(near_pairs(hashes, grey, different, different, max_bits=0, min_correlation=0.5).first) == 1


def test_hash_does_not_see_noise_on_a_flat_ground():
    flat = np.full((1, SIZE_PX, SIZE_PX, 3), 255, dtype=np.uint8)
    assert difference_hash(flat - noise(1, seed=1, high=2, channels=3)) == difference_hash(flat)
    assert difference_hash(noise(1, seed=1)) != difference_hash(noise(1, seed=2))


def test_a_large_dataset_is_searched_in_a_sample_that_the_seed_draws(tmp_path):
    tiny = tiny_dataset()
    tiny.pixels = tiny.pixels // 64 + np.arange(0, 240, 15, dtype=np.uint8)[:, None]  # all alike
    dataset = PackedDataset.open(tiny.write(tmp_path / "tiny"))

    def compared(n_items: int, seed: int) -> list[int]:
        near = collect_facts(dataset, KINDS, FactSettings(near_duplicate_items=n_items), seed).near_duplicates
        assert near.n_compared == n_items
        return sorted({*near.first.tolist(), *near.second.tolist()})

    assert len(compared(10, seed=1)) == 10
    assert compared(10, seed=1) == compared(10, seed=1) != compared(10, seed=2)
    assert compared(60, seed=1) == list(range(60))
    assert compared(0, seed=1) == []


def test_items_are_read_in_the_order_asked_for_across_shards(tmp_path):
    tiny = tiny_dataset()
    dataset = PackedDataset.open(tiny.write(tmp_path / "tiny", items_per_shard=7))
    rows = np.array([59, 0, 13, 14, 6, 7])
    np.testing.assert_array_equal(read_items(dataset, rows), tiny.pixels[rows])
