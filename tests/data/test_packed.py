import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

from kshot.data import packed
from kshot.data.items import AnyItemKind, ImageKind, VectorKind
from kshot.data.items.contract import item_size_bytes
from kshot.data.packed import DatasetInfo, PackedDataset, Quarantined, Rotations, Splits
from kshot.errors import DataError
from kshot.ingest import writer
from kshot.ingest.writer import PackedWriter, Record
from kshot.settings import STRICT
from tests.ingest.toys import GREY8, record

FOUR_ITEMS = 4 * item_size_bytes(GREY8)


def write(
    folder: Path, records: Iterable[Record], splits: Splits, rotations: Rotations = (0,), item: AnyItemKind = GREY8
) -> PackedWriter:
    with PackedWriter(
        folder,
        item=item,
        source="toy",
        licence="images: CC0; fonts: OFL",
        rotations=rotations,
        shard_limit_bytes=FOUR_ITEMS,
    ) as packing:
        for one in records:
            packing.add(one)
        packing.publish(splits)
    return packing


def records_of(*classes: str, images: int = 5) -> list[Record]:
    return [record(f"{name}/{image}", name, group=name[0]) for name in classes for image in range(images)]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    records = records_of("x1", "y1", "y2")
    write(tmp_path / "toy", records, Splits(meta_train=("x1",), meta_val=("y1",), meta_test=("y2",)))
    dataset = PackedDataset.open(tmp_path / "toy")

    assert dataset.name == "toy"
    assert dataset.item == GREY8
    assert dataset.classes == ("x1", "y1", "y2")
    assert dataset.group_names == ("x", "y")
    assert dataset.class_groups.tolist() == [0, 1, 1]
    assert dataset.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert dataset.manifest["id"].to_pylist() == [one.id for one in records]
    assert np.array_equal(dataset.gather(np.arange(15)), np.stack([one.item for one in records]))


def test_shards_stay_under_their_limit_and_gather_crosses_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "RESIDENT_LIMIT_BYTES", 0)
    records = records_of("x1", "y1")
    write(tmp_path / "toy", records, Splits(meta_train=("x1", "y1")))
    dataset = PackedDataset.open(tmp_path / "toy")

    assert [shard.items for shard in dataset.info.shards] == [4, 4, 2]
    indices = np.array([[9, 0, 4], [3, 8, 5]])
    gathered = dataset.gather(indices)
    assert gathered.shape == (2, 3, 8, 8, 1)
    assert np.array_equal(gathered[0, 2], records[4].item)
    assert np.array_equal(gathered.reshape(6, 8, 8, 1), np.stack([records[i].item for i in indices.ravel()]))


def test_mapped_and_resident_datasets_gather_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "toy", records_of("x1", "y1"), Splits(meta_train=("x1", "y1")), rotations=(0, 90, 180, 270))
    indices = np.array([39, 0, 17, 17, 22])
    resident = PackedDataset.open(tmp_path / "toy").gather(indices)
    monkeypatch.setattr(packed, "RESIDENT_LIMIT_BYTES", 0)
    assert np.array_equal(PackedDataset.open(tmp_path / "toy").gather(indices), resident)


def test_each_rotation_is_a_class_of_its_own_and_gathers_rotated_pixels(tmp_path: Path) -> None:
    records = records_of("x1", "y1")
    splits = Splits(meta_train=("y1",), meta_test=("x1",))
    write(tmp_path / "toy", records, splits, rotations=(0, 90, 180, 270))
    dataset = PackedDataset.open(tmp_path / "toy")

    assert dataset.classes[:5] == ("x1/rot000", "x1/rot090", "x1/rot180", "x1/rot270", "y1/rot000")
    assert dataset.class_ids("meta_train").tolist() == [4, 5, 6, 7]
    assert dataset.class_groups.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    for rotation in range(4):
        virtual = rotation * 10 + np.arange(10)
        assert dataset.labels[virtual].tolist() == [rotation] * 5 + [4 + rotation] * 5
        expected = np.stack([np.rot90(one.item, k=rotation) for one in records])
        assert np.array_equal(dataset.gather(virtual), expected)


def test_class_table_lists_the_items_of_a_split(tmp_path: Path) -> None:
    splits = Splits(meta_train=("y1",), meta_test=("x1",))
    write(tmp_path / "toy", records_of("x1", "y1"), splits, rotations=(0, 180))
    table = PackedDataset.open(tmp_path / "toy").class_table("meta_test")
    assert table.class_ids.tolist() == [0, 1]
    assert table.items.tolist() == [[0, 1, 2, 3, 4], [10, 11, 12, 13, 14]]


def test_indices_outside_the_dataset_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "toy", records_of("x1"), Splits(meta_train=("x1",)))
    with pytest.raises(IndexError, match=r"0\.\.4"):
        PackedDataset.open(tmp_path / "toy").gather(np.array([5]))
    with pytest.raises(IndexError, match=r"0\.\.4"):
        PackedDataset.open(tmp_path / "toy").gather(np.array([-1]))


def test_an_append_leaves_every_old_shard_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    write(folder, records_of("x1"), Splits(meta_train=("x1",)))
    before = snapshot(folder)
    packing = write(folder, records_of("x1", "y1"), Splits(meta_train=("x1", "y1")))

    after = snapshot(folder)
    assert (packing.added, packing.skipped) == (5, 5)
    for name in ("items-00000.npy", "items-00001.npy"):
        assert after[name] == before[name]
    assert sorted(set(after) - set(before)) == ["items-00002.npy", "items-00003.npy"]
    dataset = PackedDataset.open(folder)
    assert dataset.manifest["version"].to_pylist() == [1] * 5 + [2] * 5
    assert np.array_equal(dataset.gather(np.arange(10)), np.stack([one.item for one in records_of("x1", "y1")]))


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    for parent in ("one", "two"):
        write(tmp_path / parent / "toy", records_of("x1", "y1"), Splits(meta_train=("x1", "y1")))
    assert snapshot(tmp_path / "one" / "toy") == snapshot(tmp_path / "two" / "toy")


def test_ingesting_the_same_records_again_changes_no_byte(tmp_path: Path) -> None:
    write(tmp_path / "toy", records_of("x1"), Splits(meta_train=("x1",)))
    before = snapshot(tmp_path / "toy")
    packing = write(tmp_path / "toy", records_of("x1"), Splits(meta_train=("x1",)))
    assert (packing.added, packing.skipped) == (0, 5)
    assert snapshot(tmp_path / "toy") == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (record("x1/0", "x1", group="x", value=9), "already in .* with other content"),
        (record("x1/0", "y1", group="y"), "as class 'x1', now 'y1'"),
        (record("new", "x1", group="z"), "class 'x1' is in group 'x'"),
    ],
)
def test_a_contradiction_is_refused_and_nothing_changes(tmp_path: Path, changed: Record, message: str) -> None:
    write(tmp_path / "toy", records_of("x1"), Splits(meta_train=("x1",)))
    before = snapshot(tmp_path / "toy")
    fresh = [record(f"x1/new{number}", "x1", group="x") for number in range(6)]
    with pytest.raises(DataError, match=message):
        write(tmp_path / "toy", [*fresh, changed], Splits(meta_train=("x1",)))
    assert snapshot(tmp_path / "toy") == before


def test_items_of_another_kind_cannot_be_appended(tmp_path: Path) -> None:
    write(tmp_path / "toy", records_of("x1"), Splits(meta_train=("x1",)))
    with pytest.raises(DataError, match="holds grey items of 8 pixels with rotations 0, not grey items of 16 pixels"):
        write(tmp_path / "toy", [], Splits(), item=ImageKind(image_size=16, channels=1))
    with pytest.raises(DataError, match="with rotations 0, not grey items of 8 pixels with rotations 0, 90;"):
        write(tmp_path / "toy", [], Splits(), rotations=(0, 90))


def test_a_first_ingest_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no item to write"):
        write(tmp_path / "toy", [], Splits())
    assert not (tmp_path / "toy").exists()


def test_two_writers_cannot_hold_one_folder(tmp_path: Path) -> None:
    def second() -> PackedWriter:
        return PackedWriter(tmp_path / "toy", item=GREY8, source="toy", licence="")

    with second() as first, pytest.raises(DataError, match="another command is writing"), second():
        first.publish(Splits())


class Crash(BaseException):
    """Ends the process as far as the writer can tell."""


def crash_at_replacement(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Die before the `number`-th rename of the writer, and let it clean nothing up."""
    calls = iter(range(1, 100))
    real = writer.os.replace

    def replace(source: Path, target: Path) -> None:
        if next(calls) == number:
            raise Crash("died here")
        real(source, target)

    monkeypatch.setattr(writer.os, "replace", replace)
    monkeypatch.setattr(writer, "sweep", lambda folder: None)


@pytest.mark.parametrize("number", [1, 2, 3, 4])  # two shards, the manifest, dataset.json
def test_a_crash_at_any_step_leaves_the_old_version_and_the_next_ingest_heals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder = tmp_path / "toy"
    write(folder, records_of("x1"), Splits(meta_train=("x1",)))
    old = PackedDataset.open(folder)
    old_hash, old_pixels = old.content_hash, old.gather(np.arange(5))
    with monkeypatch.context() as patch:
        crash_at_replacement(number, patch)
        with pytest.raises(Crash, match="died here"):
            write(folder, records_of("y1"), Splits(meta_train=("x1", "y1")))

    survivor = PackedDataset.open(folder)
    assert survivor.content_hash == old_hash
    assert survivor.classes == ("x1",)
    assert np.array_equal(survivor.gather(np.arange(5)), old_pixels)

    write(folder, records_of("y1"), Splits(meta_train=("x1", "y1")))
    write(tmp_path / "unbroken" / "toy", records_of("x1"), Splits(meta_train=("x1",)))
    write(tmp_path / "unbroken" / "toy", records_of("y1"), Splits(meta_train=("x1", "y1")))
    assert snapshot(folder) == snapshot(tmp_path / "unbroken" / "toy")


def test_rows_of_a_crashed_ingest_do_not_outlive_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "toy"
    write(folder, records_of("x1"), Splits(meta_train=("x1",)))
    before = snapshot(folder)
    with monkeypatch.context() as patch:
        crash_at_replacement(4, patch)
        with pytest.raises(Crash, match="died here"):
            write(folder, records_of("y1"), Splits(meta_train=("x1", "y1")))
    write(folder, records_of("x1"), Splits(meta_train=("x1",)))
    assert snapshot(folder) == before


def test_the_content_hash_follows_pixels_labels_and_splits(tmp_path: Path) -> None:
    variants = {
        "same": (records_of("x1"), Splits(meta_train=("x1",))),
        "pixels": ([*records_of("x1")[:4], record("x1/4", "x1", "x", value=0)], Splits(meta_train=("x1",))),
        "splits": (records_of("x1"), Splits(meta_test=("x1",))),
        "labels": ([*records_of("x1")[:4], record("x1/4", "x2", "x")], Splits(meta_train=("x1",))),
    }
    hashes = {}
    for name, (records, splits) in variants.items():
        write(tmp_path / name / "toy", records, splits)
        hashes[name] = PackedDataset.open(tmp_path / name / "toy").content_hash
    assert len(set(hashes.values())) == 4


def test_the_content_hash_of_a_dataset_never_changes(tmp_path: Path) -> None:
    """Pinned: models and pools name the data that they were made from by this hash."""
    write(tmp_path / "toy", records_of("x1", "y1"), Splits(meta_train=("x1", "y1")), rotations=(0, 90))
    assert PackedDataset.open(tmp_path / "toy").content_hash == (
        "ef5135b911a21c3c110e7b8b3949b7127dfe0b3d9eff040034a8d83fe7db043e"
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LaterInfo(DatasetInfo):
    """What a later version may make of dataset.json: a field with a default, which the file leaves out."""

    note: Annotated[str, Field(exclude_if=lambda note: note == "")] = ""


def test_a_field_that_came_later_does_not_change_a_dataset_that_does_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(parent: str) -> PackedDataset:
        write(tmp_path / parent / "toy", records_of("x1"), Splits(meta_train=("x1",)))
        return PackedDataset.open(tmp_path / parent / "toy")

    before = make("before").content_hash
    for module in (packed, writer):
        monkeypatch.setattr(module, "DatasetInfo", LaterInfo)
    assert PackedDataset.open(tmp_path / "before" / "toy").info.note == ""
    assert PackedDataset.open(tmp_path / "before" / "toy").content_hash == before
    assert make("after").content_hash == before


def test_a_column_that_came_later_does_not_change_a_dataset_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "toy", records_of("x1"), Splits(meta_train=("x1",)))
    before = PackedDataset.open(tmp_path / "toy").content_hash
    monkeypatch.setattr(ImageKind, "original", {**ImageKind.original, "camera": str})
    after = PackedDataset.open(tmp_path / "toy")
    assert "camera" in after.manifest.column_names
    assert after.content_hash == before


def test_a_description_without_a_kind_is_of_images(tmp_path: Path) -> None:
    write(tmp_path / "toy", records_of("x1"), Splits(meta_train=("x1",)))
    assert "kind" not in json.loads((tmp_path / "toy" / "dataset.json").read_text())["item"]
    assert PackedDataset.open(tmp_path / "toy").item == GREY8


def test_an_unknown_kind_of_item_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "toy", records_of("x1"), Splits(meta_train=("x1",)))
    path = tmp_path / "toy" / "dataset.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | {"item": {"kind": "smell"}}))
    with pytest.raises(DataError, match="item: .*'smell'.*'image', 'vector'"):
        PackedDataset.open(tmp_path / "toy")


def test_rotations_of_items_that_cannot_be_turned_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found rotations 0, 90; vectors of 3 numbers cannot be turned"):
        write(tmp_path / "toy", [], Splits(), rotations=(0, 90), item=VectorKind(size=3))
    assert not (tmp_path / "toy").exists()


def test_a_missing_dataset_says_what_is_there_and_what_to_do(tmp_path: Path) -> None:
    write(tmp_path / "toy", records_of("x1"), Splits(meta_train=("x1",)))
    with pytest.raises(DataError, match="found: toy; next: kshot ingest PATH --name defects"):
        PackedDataset.open(tmp_path / "defects")
    with pytest.raises(DataError, match="or kshot ingest glyphs"):
        PackedDataset.open(tmp_path / "glyphs")


def test_a_truncated_shard_is_found_on_opening(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    write(folder, records_of("x1"), Splits(meta_train=("x1",)))
    shard = folder / "items-00000.npy"
    good = shard.read_bytes()
    shard.write_bytes(good[:-1])
    with pytest.raises(DataError, match="has 383 bytes; dataset.json needs 384"):
        PackedDataset.open(folder)


@pytest.mark.parametrize("damage", ["", "{", '{"format_version": 2}', "[]", "\udcff"])
def test_an_unreadable_description_is_refused(tmp_path: Path, damage: str) -> None:
    write(tmp_path / "toy", records_of("x1"), Splits(meta_train=("x1",)))
    (tmp_path / "toy" / "dataset.json").write_bytes(damage.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match="is not format version 1"):
        PackedDataset.open(tmp_path / "toy")


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "toy", records_of("x1"), Splits(meta_train=("x1",)))
    manifest = tmp_path / "toy" / "manifest.parquet"
    manifest.write_bytes(manifest.read_bytes()[:100])
    with pytest.raises(DataError, match=r"manifest\.parquet cannot be read"):
        PackedDataset.open(tmp_path / "toy").labels  # noqa: B018


def test_the_description_is_sorted_json_for_people(tmp_path: Path) -> None:
    with PackedWriter(tmp_path / "toy", item=GREY8, source="toy", licence="CC0") as packing:
        packing.add(record("Ä/1", "Ä"))
        packing.publish(Splits(meta_train=("Ä",)), (Quarantined(source="Ä/2", reason="the file has 0 bytes"),))
    text = (tmp_path / "toy" / "dataset.json").read_text(encoding="utf-8")
    value = json.loads(text)
    assert list(value) == sorted(value)
    assert text.endswith("}\n")
    assert '"Ä/2"' in text
    assert value["item"] == {"channels": 1, "image_size": 8, "invert": False}
