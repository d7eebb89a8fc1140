"""Unions of small packed datasets: the same pixels under names of their own, brought up to date or refused."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kshot.data.items import ImageKind, VectorKind
from kshot.data.packed import PackedDataset, Splits
from kshot.data.union import check_united, unions_of
from kshot.errors import DataError
from kshot.ingest import ingest
from kshot.ingest.curate import drop, relabel
from kshot.ingest.pack import IngestReport
from kshot.ingest.union import unite
from kshot.ingest.writer import PackedWriter, Record
from tests.tiny_dataset import noise, tiny_dataset


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two datasets, `ink` and `oil`, with classes of the same names."""
    for number, name in enumerate(("ink", "oil")):
        tiny = tiny_dataset(n_classes=3, n_images=4)
        tiny.pixels = noise(len(tiny.pixels), seed=number)
        tiny.write(tmp_path / name)
    return tmp_path


def united(data: Path, *members: str, name: str = "both") -> IngestReport | None:
    return unite(members, name, data, progress=lambda done, total: None)


def items_of(dataset: PackedDataset, class_name: str) -> NDArray[np.uint8]:
    return dataset.gather(np.flatnonzero(dataset.labels == dataset.classes.index(class_name)))


def test_a_union_has_the_items_classes_and_splits_of_its_members_which_are_its_domains(data: Path) -> None:
    report = united(data, "ink", "oil")
    assert report is not None and report.added == 72
    both, oil = PackedDataset.open(data / "both"), PackedDataset.open(data / "oil")
    assert both.domain_names == ("ink", "oil")
    assert both.splits.meta_val == tuple(f"{name}/val/c{number}" for name in ("ink", "oil") for number in range(3))
    assert np.array_equal(items_of(both, "oil/test/c1"), items_of(oil, "test/c1"))
    assert both.group_names[0] == "ink/train" and both.info.licence == "ink: none; oil: none"
    assert both.manifest["width"].to_pylist() == 72 * [16]
    assert [member.content_hash for member in both.info.members][1] == oil.content_hash
    assert united(data, "ink", "oil") is None


def test_what_a_member_gained_is_added(data: Path) -> None:
    united(data, "ink", "oil")
    shard = (data / "both" / "items-00000.npy").read_bytes()
    check_united(["ink", "oil"], "both", data)
    oil = PackedDataset.open(data / "oil")
    with PackedWriter(data / "oil", item=oil.item, source="more", licence="") as writer:
        writer.add(
            Record(
                id="test/c1/new.png", class_name="test/c1", group="test", item=noise(1, seed=9)[0], source="more",
                original={"width": 16, "height": 16, "mode": "L"},
            )
        )  # fmt: skip
        writer.publish(oil.splits)
    with pytest.raises(DataError, match=r"both is not the union of 'ink', 'oil' as they are now; next: kshot unite"):
        check_united(["ink", "oil"], "both", data)
    report = united(data, "ink", "oil")
    assert report is not None and (report.added, report.skipped) == (1, 72)
    assert (data / "both" / "items-00000.npy").read_bytes() == shard
    check_united(["ink", "oil"], "both", data)


def test_what_a_member_lost_makes_another_union(data: Path) -> None:
    united(data, "ink", "oil")
    before = (data / "both" / "dataset.json").read_bytes()
    message = r"both holds 36 items that its members no longer have, such as 'oil/train/c0/0.png'.*next: rm -r"
    with pytest.raises(DataError, match=message):
        united(data, "ink")
    assert (data / "both" / "dataset.json").read_bytes() == before


def test_what_is_left_out_of_a_member_may_be_left_out_of_the_union_as_well(data: Path) -> None:
    united(data, "ink", "oil")
    drop(data / "oil", ids=["train/c0/0.png"])
    with pytest.raises(DataError, match="both holds 1 item that its members no longer have"):
        united(data, "ink", "oil")
    drop(data / "both", ids=["oil/train/c0/0.png"])
    assert united(data, "ink", "oil") is not None
    check_united(["ink", "oil"], "both", data)
    assert PackedDataset.open(data / "both").n_stored == 71


def test_an_item_that_a_member_has_as_another_class_or_with_other_content_makes_another_union(data: Path) -> None:
    united(data, "ink", "oil")
    before = (data / "both" / "dataset.json").read_bytes()
    relabel(data / "oil", {"train/c0/0.png": "train/c1"})
    again = r"; next: rm -r .*both && kshot unite, or set another dataset.name$"
    with pytest.raises(DataError, match=r"'oil/train/c0/0.png' is already .* as class 'oil/train/c0', now.*" + again):
        united(data, "ink", "oil")
    shutil.rmtree(data / "oil")
    tiny_dataset(n_classes=3, n_images=4).write(data / "oil")  # other pixels under the same names
    with pytest.raises(DataError, match="with other content.*" + again):
        united(data, "ink", "oil")
    assert (data / "both" / "dataset.json").read_bytes() == before
    shutil.rmtree(data / "both")
    assert united(data, "ink", "oil") is not None


def test_a_member_that_changes_what_items_are_makes_another_union(data: Path) -> None:
    united(data, "ink", "oil")
    turned = tiny_dataset(n_classes=3, n_images=2)
    turned.rotations = (0, 90)
    turned.write(data / "turned")
    united(data, "ink", "oil", "turned")  # stored as they are turned
    write_plain(data / "large", ImageKind(image_size=24, channels=1), 1)
    with pytest.raises(DataError, match=r"both holds grey items of 16 pixels .*not grey items of 24 .*&& kshot unite"):
        united(data, "large", "ink", "oil", "turned")


def test_nothing_but_its_members_is_ingested_into_a_union(data: Path, class_folders: Callable[..., Path]) -> None:
    united(data, "ink", "oil")
    with pytest.raises(DataError, match="both is the union of 'ink', 'oil'; .*--name oil and then kshot unite"):
        ingest(class_folders("photos", "a", "b", "c"), "both", data, item=PackedDataset.open(data / "both").item)


def test_unions_that_hold_a_dataset_are_found(data: Path) -> None:
    united(data, "ink", "oil")
    united(data, "both", "ink", name="all")
    assert [unions_of(name, data) for name in ("ink", "both", "all")] == [["all", "both"], ["all"], []]


def test_a_dataset_of_its_own_is_not_overwritten(data: Path) -> None:
    with pytest.raises(DataError, match="oil is a dataset of its own; .*next: set another dataset.name"):
        united(data, "ink", "oil", name="oil")


def test_members_that_are_turned_alike_are_turned_by_the_union_and_others_are_stored_so(tmp_path: Path) -> None:
    turned = tiny_dataset(n_classes=3, n_images=2)
    turned.rotations = (0, 90)
    turned.write(tmp_path / "turned")
    turned.write(tmp_path / "also")
    tiny_dataset(n_classes=3, n_images=2).write(tmp_path / "plain")
    united(tmp_path, "turned", "also", name="alike")
    united(tmp_path, "turned", "plain", name="mixed")
    alike, mixed = (PackedDataset.open(tmp_path / name) for name in ("alike", "mixed"))
    assert (alike.info.rotations, alike.n_stored) == ((0, 90), 36)
    assert (mixed.info.rotations, mixed.n_stored) == ((0,), 54)
    one = PackedDataset.open(tmp_path / "turned")
    for union in (alike, mixed):
        assert len([name for name in union.classes if name.startswith("turned/")]) == 18
        assert np.array_equal(items_of(union, "turned/val/c2/rot090"), items_of(one, "val/c2/rot090"))
    assert "turned/val/c2/rot090" in mixed.splits.meta_val and "plain/val/c2" in mixed.splits.meta_val


def test_pictures_of_another_size_and_colour_are_brought_to_those_of_the_first(tmp_path: Path) -> None:
    grey, colour = ImageKind(image_size=8, channels=1, invert=True), ImageKind(image_size=16, channels=3)
    write_plain(tmp_path / "grey", grey, 40)
    write_plain(tmp_path / "colour", colour, 200)
    united(tmp_path, "grey", "colour", name="small")
    united(tmp_path, "colour", "grey", name="large")
    small, large = (PackedDataset.open(tmp_path / name) for name in ("small", "large"))
    assert (small.item, large.item) == (grey, colour)
    assert (items_of(small, "colour/a") == 200).all() and (items_of(large, "grey/a") == 40).all()
    assert items_of(small, "colour/a").shape == (1, 8, 8, 1)


def test_pictures_and_vectors_do_not_go_together(tmp_path: Path) -> None:
    write_plain(tmp_path / "pictures", ImageKind(image_size=8, channels=1), 1)
    write_plain(tmp_path / "vectors", VectorKind(size=4), 1)
    with pytest.raises(DataError, match="pictures holds grey items .* and vectors .*next: take vectors out"):
        united(tmp_path, "pictures", "vectors")
    assert not (tmp_path / "both").exists()


def test_pictures_that_are_read_by_different_ranges_do_not_go_together(tmp_path: Path) -> None:
    plain = ImageKind(image_size=8, channels=1)
    write_plain(tmp_path / "photos", plain, 1)
    for name, top in (("scans", 4095.0), ("others", 65535.0)):
        write_plain(tmp_path / name, replace(plain, value_range=(0.0, top)), 1)
    with pytest.raises(
        DataError, match=r"photos has no value range and scans 0\.\.4095; .*--name photos-ranged --range 0:4095,"
    ):
        united(tmp_path, "photos", "scans")
    with pytest.raises(DataError, match="--name photos-ranged --range 0:4095,"):
        united(tmp_path, "scans", "photos")
    with pytest.raises(DataError, match="--name others-ranged --range 0:4095,"):
        united(tmp_path, "scans", "others")


def write_plain(folder: Path, kind: ImageKind | VectorKind, level: int) -> None:
    """One item of one level in each of three classes."""
    values: dict[str, int | str] = {"width": 1, "height": 1, "mode": "L"}
    with PackedWriter(folder, item=kind, source="made", licence="") as writer:
        for name in "abc":
            item = np.full(kind.shape, level, kind.dtype)
            original = {key: values[key] for key in kind.original}
            writer.add(Record(id=name, class_name=name, group="", item=item, source="made", original=original))
        writer.publish(Splits(meta_train=("a",), meta_val=("b",), meta_test=("c",)))
