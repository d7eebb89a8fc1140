import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kshot.data.items import ImageKind
from kshot.data.items.reading import read_files
from kshot.data.packed import MANIFEST_FILE, PackedDataset, Splits
from kshot.errors import DataError
from kshot.ingest import ingest
from kshot.ingest.writer import PackedWriter, Record
from kshot.runtime.processes import Processes
from tests.ingest.toys import photo, record

Folders = Callable[..., Path]
GREY = ImageKind(image_size=16, channels=1)


@pytest.fixture
def in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few files there are."""
    monkeypatch.setattr("kshot.ingest.decoding._FEW_FILES", 1)
    monkeypatch.setattr("kshot.ingest.decoding._FILES_AT_ONCE", 4)
    monkeypatch.setattr("kshot.ingest.decoding.usable_cores", lambda: 2)


def deep_folders(folder: Path, *classes: str, low: int = 100, high: int = 4000, dtype: type = np.uint16) -> Path:
    """Two pictures in each class, whose first and last pixels are the lowest and the highest value."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for k in range(2):
            values = np.random.default_rng([number, k]).integers(low, high + 1, (16, 16)).astype(dtype)
            values[0, 0], values[-1, -1] = low, high
            Image.fromarray(values).save(folder / name / f"{k}.{'png' if dtype is np.uint16 else 'tif'}")
    return folder


def snapshot(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_a_dataset_has_the_same_bytes_whether_threads_or_processes_read_its_files(
    class_folders: Folders, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = class_folders("photos", *"abcde", images=7)
    (folder / "b" / "03.png").write_bytes(b"no picture")
    deep_folders(folder, "f")
    one = ingest(folder, "toy", tmp_path / "one")
    request.getfixturevalue("in_processes")
    two = ingest(folder, "toy", tmp_path / "two")
    assert snapshot(one.folder) == snapshot(two.folder)
    assert (one.notes, one.quarantined) == (two.notes, two.quarantined)


def test_the_bytes_of_a_dataset_are_what_they_always_were(tmp_path: Path) -> None:
    """Pictures that no resizing changes, so that the bytes follow from kshot alone."""
    for number, name in enumerate(("a", "ä b", "c")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(3):
            photo(10 * number + k, 12, 12).save(tmp_path / "photos" / name / f"{k}.png")
    report = ingest(tmp_path / "photos", "toy", tmp_path / "data", item=ImageKind(image_size=12, channels=3))
    found = snapshot(report.folder)
    assert found["dataset.json"] == "962de51568adb18505236de3148033da3d5a7cba12b111152f357703f45b474d"
    assert found["items-00000.npy"] == "43ad3b06ce2774fd9add3d83719daac5da00bed453e3d98916fb2f5afb0cde03"


@pytest.mark.usefixtures("in_processes")
def test_an_error_on_the_way_leaves_neither_files_nor_processes(class_folders: Folders, tmp_path: Path) -> None:
    folder = class_folders("photos", *"abcde", images=7)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt("by the user")

    with pytest.raises(KeyboardInterrupt, match="by the user"):
        ingest(folder, "toy", tmp_path / "data", progress=interrupt)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_process_that_reads_files_does_without_torch(class_folders: Folders) -> None:
    paths = [str(path) for path in class_folders("photos", "a").rglob("*.png")]
    with Processes(1) as processes:
        assert len(list(processes.submit(read_files, GREY, paths).result())) == 3
        loaded = processes.submit(eval, "sorted(__import__('sys').modules)").result()
    assert {"torch", "pandas", "pyarrow", "scipy"}.isdisjoint(loaded)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_a_new_dataset_finds_the_range_of_its_deep_pictures_and_says_so(tmp_path: Path, dtype: type) -> None:
    report = ingest(deep_folders(tmp_path / "deep", *"abc", dtype=dtype), "toy", tmp_path / "data", item=GREY)
    dataset = PackedDataset.open(report.folder)
    assert isinstance(dataset.item, ImageKind) and dataset.item.value_range == (100, 4000)
    assert report.notes == {
        "are deeper than 8 bits: values 100..4000 are stretched to 0..255 (--range LOW:HIGH sets it)": 6
    }
    items = dataset.gather(np.arange(6))
    assert (items.min(), items.max()) == (0, 255)


@pytest.mark.usefixtures("in_processes")
def test_the_range_of_percentiles_is_stored_and_what_lies_outside_is_counted(tmp_path: Path) -> None:
    folder = deep_folders(tmp_path / "deep", *(f"c{number}" for number in range(12)))
    for number in range(3):
        values = np.full((64, 64), 1000, dtype=np.uint16)
        values[number, :4] = 65535
        Image.fromarray(values).save(folder / "c0" / f"spike{number}.png")
    report = ingest(folder, "toy", tmp_path / "data", item=GREY, find_range="percentile")
    stored = PackedDataset.open(report.folder).item
    assert isinstance(stored, ImageKind) and stored.value_range is not None
    low, high = stored.value_range
    assert 100 <= low < 1000 < 3000 < high <= 4000
    clipped = next(count for note, count in report.notes.items() if "which are clipped" in note)
    assert 3 <= clipped <= 27


def test_an_append_takes_the_range_of_the_dataset(tmp_path: Path) -> None:
    first = ingest(deep_folders(tmp_path / "one", *"abc"), "toy", tmp_path / "data", item=GREY)
    kind = PackedDataset.open(first.folder).item
    second = ingest(deep_folders(tmp_path / "two", "d", high=60_000), "toy", tmp_path / "data", item=GREY)
    dataset = PackedDataset.open(second.folder)
    assert dataset.item == kind
    assert second.notes["hold values outside 100..4000, which are clipped"] == 2
    assert np.array_equal(dataset.gather(np.array([6]))[0], kind.read(tmp_path / "two" / "d" / "0.png").item)


def test_a_dataset_without_a_range_goes_on_taking_the_high_byte_and_refuses_floats(
    class_folders: Folders, tmp_path: Path
) -> None:
    first = ingest(class_folders("photos", *"abc"), "toy", tmp_path / "data", item=GREY)
    assert "value_range" not in (first.folder / "dataset.json").read_text()
    folder = deep_folders(tmp_path / "deep", "d")
    deep_folders(folder, "e", dtype=np.float32)
    second = ingest(folder, "toy", tmp_path / "data")
    dataset = PackedDataset.open(second.folder)
    assert dataset.item == GREY
    assert [note.partition(":")[0] for note in second.notes] == ["are deeper than 8 bits"]
    values = np.asarray(Image.open(folder / "d" / "0.png"))
    assert np.array_equal(dataset.gather(np.array([9]))[0, :, :, 0], values >> 8)
    assert [row.source for row in second.quarantined] == ["e/0.tif", "e/1.tif"]
    assert "ingest under a new --name" in second.quarantined[0].reason


def test_a_given_range_is_kept_and_pictures_of_8_bits_are_as_without_one(
    class_folders: Folders, tmp_path: Path
) -> None:
    folder = class_folders("photos", *"abc")
    plain = ingest(folder, "plain", tmp_path / "data", item=GREY)
    given = ImageKind(image_size=16, channels=1, value_range=(0, 4095))
    ranged = ingest(folder, "ranged", tmp_path / "data", item=given)
    one, two = (PackedDataset.open(report.folder) for report in (plain, ranged))
    assert two.item == given
    assert one.info.shards == two.info.shards
    assert ranged.notes == {}


def test_a_damaged_deep_picture_is_refused_and_does_not_hide_the_range(tmp_path: Path) -> None:
    folder = deep_folders(tmp_path / "deep", *"abc")
    whole = (folder / "a" / "0.png").read_bytes()
    (folder / "a" / "0.png").write_bytes(whole[: len(whole) // 2])
    report = ingest(folder, "toy", tmp_path / "data", item=GREY)
    assert [row.source for row in report.quarantined] == ["a/0.png"]
    assert list(report.notes.values()) == [5]


def test_deep_pictures_of_a_single_value_have_no_range(tmp_path: Path) -> None:
    folder = deep_folders(tmp_path / "deep", *"abc", low=7, high=7)
    with pytest.raises(
        DataError, match=r"the 6 pictures deeper than 8 bits span the values 7\.\.7; .* --range 0:65535"
    ):
        ingest(folder, "toy", tmp_path / "data", item=GREY)
    assert not (tmp_path / "data" / "toy").exists()


def test_another_range_than_that_of_the_dataset_is_refused(tmp_path: Path) -> None:
    folder = deep_folders(tmp_path / "deep", *"abc")
    ingest(folder, "toy", tmp_path / "data", item=GREY)
    other = ImageKind(image_size=16, channels=1, value_range=(0, 4095))
    with pytest.raises(DataError, match=r"holds .*100\.\.4000 stretched.*, not .*0\.\.4095 stretched"):
        ingest(folder, "toy", tmp_path / "data", item=other)
    with pytest.raises(DataError, match="found --range percentile for a dataset of .*; next: leave out --range"):
        ingest(folder, "toy", tmp_path / "data", find_range="percentile")


def test_a_manifest_is_written_as_arrow_writes_a_table_of_its_rows(tmp_path: Path) -> None:
    """Also where texts have many bytes per letter, are empty, or fill several chunks."""
    records = [
        record(f"{name}/{number}", name, group) for name, group in (("ä", ""), ("日本", "x")) for number in range(5)
    ]
    with PackedWriter(tmp_path / "toy", item=ImageKind(image_size=8, channels=1), source="", licence="") as writer:
        for one in records[:7]:
            writer.add(one)
        writer.publish(Splits())
    with PackedWriter(tmp_path / "toy", item=ImageKind(image_size=8, channels=1), source="", licence="") as writer:
        for one in records:
            writer.add(one)
        assert (writer.added, writer.skipped) == (3, 7)
        writer.publish(Splits())
    written = pq.read_table(tmp_path / "toy" / MANIFEST_FILE)
    assert written["id"].to_pylist() == [one.id for one in records]
    assert written["version"].to_pylist() == [1] * 7 + [2] * 3
    expected = tmp_path / "expected.parquet"
    pq.write_table(
        pa.table(written.to_pydict(), schema=written.schema),
        expected,
        compression="zstd",
        compression_level=3,
        use_dictionary=["class", "group", "source", "mode"],
        write_statistics=False,
    )
    assert (tmp_path / "toy" / MANIFEST_FILE).read_bytes() == expected.read_bytes()


def test_a_column_of_many_bytes_is_kept_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kshot.ingest.writer._CHUNK_BYTES", 16)
    monkeypatch.setattr("kshot.ingest.writer._ROWS_AT_ONCE", 2)
    records = [record(f"picture number {number}") for number in range(5)]
    with PackedWriter(tmp_path / "toy", item=ImageKind(image_size=8, channels=1), source="", licence="") as writer:
        for one in [*records, *records]:
            writer.add(one)
        with pytest.raises(DataError, match="'picture number 0' is already in .* with other content"):
            writer.add(record("picture number 0", value=3))
        writer.publish(Splits())
        assert (writer.added, writer.skipped) == (5, 5)
    assert PackedDataset.open(tmp_path / "toy").manifest["id"].to_pylist() == [one.id for one in records]


def test_a_record_may_repeat_with_another_layout_in_memory(tmp_path: Path) -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    kept = {"width": 8, "height": 8, "mode": "L"}
    with PackedWriter(tmp_path / "toy", item=ImageKind(image_size=8, channels=1), source="", licence="") as writer:
        for item in (pixels, np.asfortranarray(pixels)):
            writer.add(Record(id="a", class_name="a", group="", item=item, source="", original=kept))
        assert (writer.added, writer.skipped) == (1, 1)
        writer.publish(Splits())
