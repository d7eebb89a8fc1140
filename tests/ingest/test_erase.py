"""Erasing: nothing of an item is left in the folder, and everything else reads as before."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from kshot.data.packed import PackedDataset, Quarantined, info_json, read_info
from kshot.errors import DataError
from kshot.ingest import erase as erasing
from kshot.ingest import writer
from kshot.ingest.curate import drop, merge_classes, relabel, undo
from kshot.ingest.erase import erase
from kshot.ingest.pack import write_table
from kshot.ingest.writer import write_atomically
from tests.tiny_dataset import tiny_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_dataset().write(tmp_path / "tiny", items_per_shard=17)


def texts(folder: Path) -> str:
    """All that the files of the folder say."""
    tables = [str(pq.read_table(path).to_pydict()) for path in folder.glob("*.parquet")]
    return "\n".join([(folder / "dataset.json").read_text(encoding="utf-8"), *tables])


def test_an_erased_item_is_in_no_file_and_the_others_are_as_before(folder: Path) -> None:
    whole = PackedDataset.open(folder)
    gone = whole.gather(np.array([3]))[0].tobytes()
    erase(folder, ["train/c0/3.png"], [])
    dataset = PackedDataset.open(folder)
    kept = np.delete(np.arange(60), 3)
    np.testing.assert_array_equal(dataset.gather(np.arange(59)), whole.gather(kept))
    assert "train/c0/3.png" not in texts(folder)
    assert sha256(gone).hexdigest() not in texts(folder)
    assert all(gone not in path.read_bytes() for path in folder.glob("*.npy"))
    assert [shard.items for shard in dataset.info.shards] == [16, 17, 17, 9]
    for shard in dataset.info.shards:
        assert sha256((folder / shard.file).read_bytes()).hexdigest() == shard.sha256


def test_a_dropped_item_can_be_erased_too_and_the_edits_forget_it(folder: Path) -> None:
    ids = PackedDataset.open(folder).manifest["id"].to_pylist()
    drop(folder, ids=ids[:40:2] + ids[41:45])
    relabel(folder, {"train/c0/1.png": "test/c0", "train/c0/3.png": "test/c0"})
    erase(folder, [ids[0], ids[41], "train/c0/1.png"], [])
    said = texts(folder)
    assert not any(repr(name) in said or f'"{name}"' in said for name in (ids[0], ids[41], "train/c0/1.png"))
    dataset = PackedDataset.open(folder)
    assert dataset.n_stored == 60 - 24 - 1
    assert (
        dict(zip(dataset.manifest["id"].to_pylist(), dataset.manifest["class"].to_pylist(), strict=True))[
            "train/c0/3.png"
        ]
        == "test/c0"
    )
    assert [str(edit) for edit in dataset.info.edits][2] == "erasure of 3 items"


def test_an_erased_class_leaves_not_even_its_name(folder: Path) -> None:
    drop(folder, classes=["train/c1"])
    merge_classes(folder, ["val/c0"], "val/c1")
    undo(folder, 2)
    report = erase(folder, [], ["train/c1", "val/c0"])
    assert report.erased == 10
    assert "train/c1" not in texts(folder) and "val/c0" not in texts(folder)
    dataset = PackedDataset.open(folder)
    assert dataset.n_stored == 50
    assert dataset.splits.meta_val == ("val/c1", "val/c2", "val/c3")


def test_an_erasure_is_not_undone_and_what_was_before_it_can_be(folder: Path) -> None:
    drop(folder, ids=["train/c1/5.png"])
    erase(folder, ["train/c0/3.png"], [])
    with pytest.raises(DataError, match="edit 2 erased items, which cannot be undone"):
        undo(folder, 2)
    undo(folder)
    assert PackedDataset.open(folder).n_stored == 59


def test_erasing_again_and_appending_never_use_a_name_twice(folder: Path) -> None:
    erase(folder, ["train/c0/3.png"], [])
    erase(folder, ["train/c0/4.png", "test/c0/40.png"], [])
    dataset = PackedDataset.open(folder)
    assert [shard.file for shard in dataset.info.shards] == [
        "items-00005.npy",
        "items-00001.npy",
        "items-00006.npy",
        "items-00003.npy",
    ]
    assert sorted(path.name for path in folder.glob("manifest*")) == ["manifest-00001.parquet"]


def test_a_crash_at_any_step_leaves_the_dataset_before_or_after(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = PackedDataset.open(folder).content_hash
    for number in range(1, 4):  # the shard, the manifest, dataset.json
        calls = iter(range(1, 100))
        real = writer.os.replace

        def replace(source: Path, target: Path, last: int = number, calls=calls, real=real) -> None:
            if next(calls) == last:
                raise KeyboardInterrupt("died here")
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(writer.os, "replace", replace)
            patch.setattr(writer, "sweep", lambda folder: None)
            with pytest.raises(KeyboardInterrupt, match="died here"):
                erase(folder, ["train/c0/3.png"], [])
        assert PackedDataset.open(folder).content_hash == before
        assert PackedDataset.open(folder).manifest.num_rows == 60
    erase(folder, ["train/c0/3.png"], [])
    assert PackedDataset.open(folder).n_stored == 59
    assert len(list(folder.glob("items-*.npy"))) == 4


def test_everything_is_not_erased_by_this_command(folder: Path) -> None:
    ids = PackedDataset.open(folder).manifest["id"].to_pylist()
    with pytest.raises(DataError, match="would erase every item of tiny; next: rm -r"):
        erase(folder, ids, [])
    with pytest.raises(DataError, match="no item 'nobody'"):
        erase(folder, ["nobody"], [])
    assert erasing.rows_to_erase(PackedDataset.open(folder), [], ["train/c0"]).tolist() == [0, 1, 2, 3, 4]


def test_a_class_that_was_merged_is_erased_as_it_was_ingested(folder: Path) -> None:
    merge_classes(folder, ["train/c0", "train/c1"], "train/c1")
    assert erase(folder, [], ["train/c0"]).erased == 5
    assert "train/c0" not in texts(folder)
    with pytest.raises(DataError, match="has no class 'train/c0'"):
        erase(folder, [], ["train/c0"])


def test_the_name_of_a_merged_class_goes_with_its_last_item(folder: Path) -> None:
    merge_classes(folder, ["train/c0", "train/c1"], "train/Anna Smith")
    assert erase(folder, [], ["train/Anna Smith"]).erased == 10
    assert not any(name in texts(folder) for name in ("Anna Smith", "train/c0", "train/c1"))


def test_files_that_were_refused_beside_an_erased_class_are_forgotten(folder: Path) -> None:
    info = read_info(folder)
    refused = (Quarantined(source="train/c0/bad.png", reason="x"), Quarantined(source="train/c1/bad.png", reason="x"))
    write_atomically(folder / "dataset.json", info_json(replace(info, quarantined=refused)))
    for name in ("quarantine.csv", "left_out.csv"):
        write_table(folder / name, [("train/c0/notes.txt", "x"), ("train/c1/notes.txt", "x")])
    erase(folder, [], ["train/c0"])
    assert [row.source for row in read_info(folder).quarantined] == ["train/c1/bad.png"]
    assert not any(b"train/c0" in path.read_bytes() for path in folder.iterdir())
    assert all(b"train/c1" in (folder / name).read_bytes() for name in ("quarantine.csv", "left_out.csv"))
