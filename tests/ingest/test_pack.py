import csv
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from kshot.data.items import ImageKind
from kshot.data.items.contract import item_size_bytes
from kshot.data.items.image import to_item
from kshot.data.packed import PackedDataset, Splits
from kshot.errors import DataError
from kshot.ingest import Reading, SplitRequest, ingest, ingest_built_in
from kshot.ingest.pack import BuiltIn
from kshot.ingest.splits import SeededSplits
from tests.ingest.toys import GREY8, encoded, photo, record

SMALL = ImageKind(image_size=12, channels=3)
Folders = Callable[..., Path]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_folder_of_colour_photos_becomes_a_dataset(class_folders: Folders, tmp_path: Path) -> None:
    folder = class_folders("photos", "a", "b", "c", "d")
    report = ingest(folder, "defects", tmp_path / "data", item=SMALL, licence="ours")

    assert (report.added, report.skipped, report.n_items, report.n_classes) == (12, 0, 12, 4)
    dataset = PackedDataset.open(tmp_path / "data" / "defects")
    assert (dataset.name, dataset.info.source, dataset.info.licence) == ("defects", "photos", "ours")
    first = dataset.manifest.slice(0, 1).to_pylist()[0]
    assert first["id"] == "a/00.png"
    assert (first["width"], first["height"], first["mode"]) == (40, 30, "RGB")
    with Image.open(folder / "b" / "01.png") as image:
        assert np.array_equal(dataset.gather(np.array([4]))[0], to_item(image, SMALL))


def test_the_default_item_is_84_pixel_colour_of_jpegs_decoded_smaller(class_folders: Folders, tmp_path: Path) -> None:
    ingest(class_folders("photos", "a", "b", "c"), "defects", tmp_path / "data")
    expected = ImageKind(image_size=84, channels=3, jpeg="scaled")
    assert PackedDataset.open(tmp_path / "data" / "defects").item == expected


@pytest.mark.parametrize("jpeg", ["full", "scaled"])
def test_large_jpegs_are_decoded_as_the_dataset_was_begun(tmp_path: Path, jpeg: Literal["full", "scaled"]) -> None:
    for name in "abc":
        (tmp_path / "photos" / name).mkdir(parents=True)
        photo(ord(name), 201, 152).save(tmp_path / "photos" / name / "0.jpg")
    item = ImageKind(image_size=12, channels=3, jpeg=jpeg)
    first = ingest(tmp_path / "photos", "toy", tmp_path / "data", item=item)
    photo(7, 201, 152).save(tmp_path / "photos" / "a" / "1.jpg")
    second = ingest(tmp_path / "photos", "toy", tmp_path / "data")
    assert (first.added, second.added, second.skipped) == (3, 1, 3)
    stored = PackedDataset.open(second.folder)
    assert np.array_equal(stored.gather(np.array([3]))[0], item.read(tmp_path / "photos" / "a" / "1.jpg").item)


@pytest.mark.parametrize("fit", ["crop", "stretch"])
def test_another_fit_than_that_of_the_dataset_is_refused(
    class_folders: Folders, tmp_path: Path, fit: Literal["crop", "stretch"]
) -> None:
    folder = class_folders("photos", "a", "b", "c")
    report = ingest(folder, "toy", tmp_path / "data", item=replace(SMALL, fit="pad"))
    before = snapshot(report.folder)
    message = (
        r"holds colour items of 12 pixels \(padded to squares\).*, not .*; append with the same settings, or ingest"
    )
    with pytest.raises(DataError, match=message):
        ingest(folder, "toy", tmp_path / "data", item=replace(SMALL, fit=fit))
    assert snapshot(report.folder) == before
    assert ingest(folder, "toy", tmp_path / "data").skipped == 9


def test_bad_files_are_quarantined_with_their_reasons(class_folders: Folders, tmp_path: Path) -> None:
    folder = class_folders("photos", "a", "b", "c")
    (folder / "a" / "empty.png").write_bytes(b"")
    (folder / "b" / "text.png").write_text("no image, and a, comma")
    (folder / "c" / "cut.jpg").write_bytes(encoded(photo(1, 64, 64), "JPEG")[:900])
    report = ingest(folder, "defects", tmp_path / "data", item=SMALL)

    assert report.added == 9
    assert [row.source for row in report.quarantined] == ["a/empty.png", "b/text.png", "c/cut.jpg"]
    with (tmp_path / "data" / "defects" / "quarantine.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"source": "a/empty.png", "reason": "the file has 0 bytes"}
    assert rows[1]["reason"] == "not a PNG, JPEG, WEBP, BMP, TIFF, PPM or GIF image"
    assert rows[2]["reason"].startswith("damaged JPEG image")
    described = json.loads((tmp_path / "data" / "defects" / "dataset.json").read_text())
    assert described["quarantined"] == rows


def test_the_quarantine_is_that_of_the_last_ingest(class_folders: Folders, tmp_path: Path) -> None:
    folder = class_folders("photos", "a", "b", "c")
    (folder / "a" / "bad.png").write_bytes(b"")
    ingest(folder, "defects", tmp_path / "data", item=SMALL)
    (folder / "a" / "bad.png").write_bytes(encoded(photo(99)))
    report = ingest(folder, "defects", tmp_path / "data")
    assert (report.added, report.skipped, report.quarantined) == (1, 9, ())
    assert not (tmp_path / "data" / "defects" / "quarantine.csv").exists()


def test_when_nothing_is_usable_the_error_shows_the_first_reason(tmp_path: Path) -> None:
    (tmp_path / "photos" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="none of 1 files is usable; the first is 'a': the folder holds no picture"):
        ingest(tmp_path / "photos", "defects", tmp_path / "data", item=SMALL)
    (tmp_path / "photos" / "a").rmdir()
    with pytest.raises(DataError, match="photos holds no picture in a class folder"):
        ingest(tmp_path / "photos", "defects", tmp_path / "data", item=SMALL)
    assert not (tmp_path / "data" / "defects").exists()


def test_a_class_whose_every_file_is_damaged_does_not_disturb_given_splits(
    class_folders: Folders, tmp_path: Path
) -> None:
    folder = class_folders("photos", "a", "b")
    (folder / "bad").mkdir()
    (folder / "bad" / "1.png").write_bytes(b"")
    given = {"a": "meta_train", "b": "meta_test", "bad": "meta_val"}
    report = ingest(folder, "defects", tmp_path / "data", item=SMALL, splits=SplitRequest(given=given))
    assert report.splits == Splits(meta_train=("a",), meta_test=("b",))


def test_an_append_adds_only_new_shards_and_keeps_the_splits(class_folders: Folders, tmp_path: Path) -> None:
    folder = class_folders("photos", *"abcde")
    limit = 4 * item_size_bytes(SMALL)
    first = ingest(folder, "defects", tmp_path / "data", item=SMALL, shard_limit_bytes=limit)
    before = snapshot(first.folder)
    class_folders("photos", *"abcdefg", images=4)
    second = ingest(folder, "defects", tmp_path / "data", shard_limit_bytes=limit)

    after = snapshot(second.folder)
    shards = [name for name in before if name.endswith(".npy")]
    assert len(shards) == 4
    assert {name: after[name] for name in shards} == {name: before[name] for name in shards}
    assert (second.added, second.skipped) == (13, 15)
    assert second.splits.meta_test == first.splits.meta_test
    assert second.splits.meta_val == first.splits.meta_val
    assert {"f", "g"} <= set(second.splits.meta_train)


def test_the_same_source_gives_the_same_bytes_and_a_second_ingest_changes_none(
    class_folders: Folders, tmp_path: Path
) -> None:
    folder = class_folders("photos", "a", "b", "c")
    (folder / "a" / "bad.png").write_bytes(b"")
    one = ingest(folder, "defects", tmp_path / "one", item=SMALL, licence="images: ours; frames: theirs")
    two = ingest(folder, "defects", tmp_path / "two", item=SMALL, licence="images: ours; frames: theirs")
    assert snapshot(one.folder) == snapshot(two.folder)
    again = ingest(folder, "defects", tmp_path / "one", licence="images: ours; frames: theirs")
    assert (again.added, again.skipped) == (0, 9)
    assert snapshot(one.folder) == snapshot(two.folder)


def test_a_changed_image_under_an_old_name_is_refused(class_folders: Folders, tmp_path: Path) -> None:
    folder = class_folders("photos", "a", "b", "c")
    report = ingest(folder, "defects", tmp_path / "data", item=SMALL)
    before = snapshot(report.folder)
    photo(77).save(folder / "a" / "00.png")
    with pytest.raises(DataError, match=r"'a/00\.png' is already in .* with other content"):
        ingest(folder, "defects", tmp_path / "data")
    assert snapshot(report.folder) == before


def test_a_new_class_may_not_be_the_case_twin_of_an_old_one(class_folders: Folders, tmp_path: Path) -> None:
    ingest(class_folders("monday", "crack", "b", "c"), "defects", tmp_path / "data", item=SMALL)
    with pytest.raises(DataError, match=r"classes 'crack' and 'Crack' \(Crack/00.png\) differ only in case"):
        ingest(class_folders("tuesday", "Crack"), "defects", tmp_path / "data")


def test_a_later_source_is_noted_beside_the_first(class_folders: Folders, tmp_path: Path) -> None:
    ingest(class_folders("monday", "a", "b", "c"), "defects", tmp_path / "data", item=SMALL)
    ingest(class_folders("tuesday", "d"), "defects", tmp_path / "data")
    dataset = PackedDataset.open(tmp_path / "data" / "defects")
    assert dataset.info.source == "monday; tuesday"
    assert dataset.manifest["source"].unique().to_pylist() == ["monday", "tuesday"]


def test_splits_can_be_drawn_by_group(class_folders: Folders, tmp_path: Path) -> None:
    folder = class_folders("photos", *(f"{group}/{name}" for group in "pqrs" for name in "ab"), images=1)
    request = SplitRequest(seeded=SeededSplits(by="group"))
    report = ingest(folder, "defects", tmp_path / "data", item=SMALL, splits=request)
    dataset = PackedDataset.open(report.folder)
    assert set(dataset.group_names) == set("pqrs")
    groups = [
        {name.split("/")[0] for name in names}
        for names in (report.splits.of("meta_val"), report.splits.of("meta_test"))
    ]
    assert not groups[0] & groups[1]


def test_the_splits_of_a_csv_are_used(class_folders: Folders, tmp_path: Path) -> None:
    folder = class_folders("photos", "a", "b", "c", images=1)
    lines = [f"{name}/00.png,{name},{split}" for name, split in zip("abc", ("test", "val", "train"), strict=True)]
    (folder / "labels.csv").write_text("\n".join(["path,class,split", *lines]))
    report = ingest(folder / "labels.csv", "defects", tmp_path / "data", item=SMALL)
    assert report.splits == Splits(meta_train=("c",), meta_val=("b",), meta_test=("a",))


def test_a_class_of_a_csv_without_any_file_is_left_out(class_folders: Folders, tmp_path: Path) -> None:
    folder = class_folders("photos", "a", "b", images=1)
    (folder / "labels.csv").write_text("path,class,split\na/00.png,a,train\nb/00.png,b,val\nc/00.png,c,test\n")
    report = ingest(folder, "defects", tmp_path / "data", item=SMALL)
    assert report.splits == Splits(meta_train=("a",), meta_val=("b",))
    assert [row.source for row in report.quarantined] == ["c/00.png"]


def test_an_archive_gives_the_same_items_as_its_folder(class_folders: Folders, tmp_path: Path) -> None:
    folder = class_folders("photos", "a", "b", "c")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, Path("photos") / path.relative_to(folder))
    ingest(folder, "one", tmp_path / "data", item=SMALL)
    ingest(tmp_path / "photos.zip", "two", tmp_path / "data", item=SMALL)
    one, two = (PackedDataset.open(tmp_path / "data" / name) for name in ("one", "two"))
    assert one.info.shards == two.info.shards
    assert one.manifest["id"].to_pylist() == two.manifest["id"].to_pylist()


def test_rotations_multiply_the_classes_of_any_source(class_folders: Folders, tmp_path: Path) -> None:
    report = ingest(
        class_folders("photos", "a", "b", "c"), "defects", tmp_path / "data", item=SMALL, rotations=(0, 180)
    )
    dataset = PackedDataset.open(report.folder)
    assert len(dataset.classes) == 6
    upright, turned = dataset.gather(np.array([2, 2 + dataset.n_stored]))
    assert np.array_equal(turned, upright[::-1, ::-1])


def test_progress_counts_every_file_once(class_folders: Folders, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    ingest(
        class_folders("photos", "a", "b", "c"),
        "defects",
        tmp_path / "data",
        item=SMALL,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 9) for done in range(1, 10)]


@pytest.mark.parametrize("name", ["", "../data", "a/b", ".hidden", "-rf", "über", "a b", "..."])
def test_a_dataset_name_is_a_plain_word(class_folders: Folders, tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="found dataset name"):
        ingest(class_folders("photos", "a"), name, tmp_path / "data")


def test_a_built_in_source_is_packed_with_its_own_splits(tmp_path: Path) -> None:
    toy = BuiltIn(
        item=GREY8,
        rotations=(0, 90),
        source="toy",
        licence="CC0",
        n_items=6,
        records=lambda: iter([record(f"{name}/{number}", name) for name in "ab" for number in range(3)]),
        splits=lambda: Splits(meta_train=("b",), meta_test=("a",)),
    )
    seen: list[tuple[int, int]] = []
    report = ingest_built_in(toy, "toy", tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert report.added == 6
    assert report.quarantined == ()
    assert seen[-1] == (6, 6)
    assert PackedDataset.open(tmp_path / "toy").classes == ("a/rot000", "a/rot090", "b/rot000", "b/rot090")


def test_a_failed_built_in_source_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> object:
        yield record("a/0")
        raise DataError("the archives cannot be had")

    toy = BuiltIn(
        item=GREY8,
        rotations=(0,),
        source="",
        licence="",
        n_items=2,
        records=broken,
        splits=Splits,  # type: ignore[arg-type]
    )
    with pytest.raises(DataError, match="cannot be had"):
        ingest_built_in(toy, "toy", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_domains_are_a_level_of_the_ids_and_stay_when_more_is_appended(class_folders: Folders, tmp_path: Path) -> None:
    folder = class_folders("photos", "phone/a", "phone/b", "phone/c", "scanner/a", "scanner/b", "scanner/c")
    by_domain = Reading(layout=("domain", "class"))
    ingest(folder, "defects", tmp_path / "data", item=SMALL, reading=by_domain)
    dataset = PackedDataset.open(tmp_path / "data" / "defects")
    assert (sorted(dataset.splits.by_class()), dataset.domain_names) == (["a", "b", "c"], ("phone", "scanner"))
    table = dataset.class_table("meta_train")
    assert len(table.domain_names) == 2 and table.domains is not None
    for items, domains in zip(table.items.tolist(), table.domains.tolist(), strict=True):
        names = [dataset.manifest["id"][item].as_py().split("/")[0] for item in items]
        assert names == [dataset.domain_names[number] for number in domains]
    more = class_folders("more", "camera/b")
    with pytest.raises(DataError, match="was ingested with domains in part 1 of the ids, and .* domains in part 2 of"):
        ingest(more, "defects", tmp_path / "data", reading=Reading(layout=("class", "domain")))
    ingest(more, "defects", tmp_path / "data", reading=by_domain)
    assert PackedDataset.open(tmp_path / "data" / "defects").domain_names == ("camera", "phone", "scanner")
