"""Curating a dataset that lies in a folder: what readers see afterwards, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kshot.data.packed import PackedDataset, read_info
from kshot.errors import DataError
from kshot.ingest import curate, ingest, writer
from kshot.ingest.curate import (
    CurateReport,
    classes_in,
    drop,
    ids_in,
    merge_classes,
    min_images,
    move_split,
    relabel,
    rules_on_new_items,
    to_drop_in,
    undo,
)
from kshot.ingest.writer import PackedWriter, Record, hold
from tests.tiny_dataset import noise, tiny_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """4 classes in each split, "train/c0" to "test/c3", of 5 images each, numbered through: "train/c0/0.png"."""
    return tiny_dataset().write(tmp_path / "tiny", items_per_shard=17)


def ids(folder: Path) -> list[str]:
    return PackedDataset.open(folder).manifest["id"].to_pylist()


def append(folder: Path, *new: tuple[str, int]) -> PackedDataset:
    """Add so many new items of each class, as ingest does."""
    info = read_info(folder)
    with PackedWriter(folder, item=info.item, source="more", licence="none") as appending:
        for class_name, n_items in new:
            for number, pixels in enumerate(noise(n_items, seed=1000 + len(class_name))):
                appending.add(
                    Record(
                        id=f"{class_name}/new{number}.png",
                        class_name=class_name,
                        group=class_name.split("/")[0],
                        item=pixels,
                        source="more",
                        original={"width": 16, "height": 16, "mode": "L"},
                    )
                )
        appending.publish(info.splits)
    return PackedDataset.open(folder)


def test_readers_see_the_items_in_use_and_every_item_stays_stored(folder: Path) -> None:
    whole = PackedDataset.open(folder)
    report = drop(folder, ids=["train/c0/1.png", "val/c3/39.png"], reason="blurred")
    dataset = PackedDataset.open(folder)
    kept = [row for row in range(60) if row not in (1, 39)]
    assert (report.before.items["meta_train"], report.after.items["meta_train"]) == (20, 19)
    assert (dataset.n_stored, dataset.info.n_items, len(dataset.labels)) == (58, 60, 58)
    np.testing.assert_array_equal(dataset.gather(np.arange(58)), whole.gather(np.array(kept)))
    assert dataset.manifest["id"].to_pylist() == [whole.manifest["id"][row].as_py() for row in kept]
    assert dataset.class_table("meta_train").counts.tolist() == [4, 5, 5, 5]
    assert dataset.info.edits[0].reason == "blurred"


def test_a_dataset_too_large_for_memory_reads_the_same_items(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drop(folder, ids=["train/c0/1.png", "val/c3/39.png"])
    order = np.array([[57, 0], [1, 37]])
    resident = PackedDataset.open(folder).gather(order)
    monkeypatch.setattr("kshot.data.packed.RESIDENT_LIMIT_BYTES", 1)
    np.testing.assert_array_equal(PackedDataset.open(folder).gather(order), resident)


def test_every_edit_makes_another_version_and_none_touches_what_is_stored(folder: Path) -> None:
    stored = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "dataset.json"}
    hashes = {PackedDataset.open(folder).content_hash}
    edits: list[Callable[[], CurateReport]] = [
        lambda: drop(folder, ids=["train/c0/0.png"]),
        lambda: drop(folder, classes=["train/c1"]),
        lambda: relabel(folder, {"train/c0/1.png": "train/c2"}),
        lambda: move_split(folder, ["train/c2"], "val"),
        lambda: merge_classes(folder, ["val/c0", "val/c1"], "val/both"),
        lambda: min_images(folder, 5),
        lambda: undo(folder),
    ]
    for number, edit in enumerate(edits, start=1):
        assert edit().number == number
        hashes.add(PackedDataset.open(folder).content_hash)
    assert len(hashes) == len(edits) + 1
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "dataset.json"} == stored


def test_undoing_every_edit_gives_the_same_items_again(folder: Path) -> None:
    whole = PackedDataset.open(folder)
    drop(folder, classes=["train/c1"])
    relabel(folder, {"train/c0/1.png": "test/c2"})
    undo(folder)
    report = undo(folder)
    assert "undone: edit 1, drop of 1 class 'train/c1' with 5 items" in report.notes
    dataset = PackedDataset.open(folder)
    assert dataset.manifest == whole.manifest
    assert (dataset.classes, dataset.splits) == (whole.classes, whole.splits)
    with pytest.raises(DataError, match="tiny has no edit to undo"):
        undo(folder)


def test_a_relabelled_item_is_in_the_class_split_and_group_of_its_new_label(folder: Path) -> None:
    report = relabel(folder, {"train/c0/1.png": "test/c2", "train/c0/2.png": "train/c1"})
    assert report.notes == ("1 item moved from meta_train to meta_test; models trained before may have seen them",)
    rows = PackedDataset.open(folder).manifest.to_pylist()
    assert [(row["class"], row["group"]) for row in rows[:3]] == [
        ("train/c0", "train"),
        ("test/c2", "test"),
        ("train/c1", "train"),
    ]


def test_merged_classes_are_one_and_items_that_come_later_belong_to_it(folder: Path) -> None:
    merge_classes(folder, ["test/c1", "test/c3"], "test/c1")
    dataset = append(folder, ("test/c3", 2))
    assert dataset.splits.meta_test == ("test/c0", "test/c1", "test/c2")
    assert dataset.manifest["class"].to_pylist().count("test/c1") == 12


def test_a_class_moved_to_another_split_stays_there_when_it_grows(folder: Path) -> None:
    report = move_split(folder, ["train/c0", "train/c1"], "test")
    assert report.edit.n_items == 10
    dataset = append(folder, ("train/c0", 1))
    assert dataset.splits.meta_train == ("train/c2", "train/c3")
    assert set(dataset.splits.meta_test) == {"test/c0", "test/c1", "test/c2", "test/c3", "train/c0", "train/c1"}


def test_small_classes_are_left_out_and_listed(folder: Path) -> None:
    drop(folder, ids=["train/c0/0.png", "val/c1/25.png"])
    report = min_images(folder, 5)
    assert report.notes == ("left out: 'train/c0' (4), 'val/c1' (4)",)
    assert report.edit.n_items == 8
    assert append(folder, ("train/c0", 1)).class_table("meta_train").counts.tolist() == [5, 5, 5, 5]


def test_new_items_are_told_which_rules_they_fall_under(folder: Path) -> None:
    drop(folder, classes=["train/c1"])
    merge_classes(folder, ["test/c0"], "test/c1")
    move_split(folder, ["val/c0"], "train")
    dataset = append(folder, ("train/c1", 3), ("test/c0", 2), ("val/c0", 1), ("train/c3", 1))
    assert rules_on_new_items(dataset, 7) == (
        "3 new items left out by edit 1: drop of 1 class 'train/c1' with 5 items",
        "2 new items in another class by edit 2: merging of 1 class 'test/c0' with 5 items into 'test/c1'",
        "1 new item in another split by edit 3: move of 1 class 'val/c0' with 5 items to meta_train",
        "5 known items left out by earlier edits, as before",
    )


def test_a_dropped_item_stays_dropped_when_it_is_ingested_again(folder: Path) -> None:
    append(folder, ("train/c0", 2))
    drop(folder, ids=["train/c0/new0.png"])
    dataset = append(folder, ("train/c0", 2))
    assert "train/c0/new0.png" not in dataset.manifest["id"].to_pylist()
    assert len(dataset.info.edits) == 1


def test_a_long_list_lies_in_a_file_of_its_own(folder: Path) -> None:
    dropped = ids(folder)[:30]
    drop(folder, ids=dropped[:19] + dropped[20:25])
    relabel(folder, dict.fromkeys(ids(folder)[-12:], "test/c1") | dict.fromkeys(ids(folder)[1:18], "val/c3"))
    assert sorted(path.name for path in folder.glob("edit-*")) == ["edit-00000.parquet", "edit-00001.parquet"]
    dataset = PackedDataset.open(folder)
    assert dataset.n_stored == 36
    assert dataset.manifest["class"].to_pylist().count("test/c1") == 5 + 12 - 2
    assert b"c1/3" not in (folder / "dataset.json").read_bytes()


def test_a_list_that_was_altered_or_lost_is_an_error(folder: Path) -> None:
    drop(folder, ids=ids(folder)[::2])
    (folder / "edit-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="edit-00000.parquet was altered.*next: dvc checkout"):
        _ = PackedDataset.open(folder).manifest
    (folder / "edit-00000.parquet").unlink()
    with pytest.raises(DataError, match="edit-00000.parquet is not there"):
        PackedDataset.open(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda f: drop(f, ids=["train/c0/1.jpg"]), r"no item 'train/c0/1.jpg'.*did you mean 'train/c0/1.png'\?"),
        (lambda f: drop(f, ids=[]), "found no class; needed the name of at least one"),
        (lambda f: drop(f, classes=["train/c9"]), r"no class 'train/c9'.*did you mean 'train/c\d'\?"),
        (lambda f: drop(f, classes=[]), "found no class; needed the name of at least one"),
        (
            lambda f: drop(f, classes=[f"val/c{n}" for n in range(4)]),
            "leave meta_val without a class.*next: kshot curate tiny move-split train/c0 --to meta_val",
        ),
        (lambda f: min_images(f, 6), "leave meta_train, meta_val, meta_test without a class"),
        (lambda f: min_images(f, 0), "found 0 as the least number.*needed 1"),
        (
            lambda f: move_split(f, ["val/c0"], "practice"),
            "found split 'practice' after --to; needed one of meta_train",
        ),
        (lambda f: move_split(f, ["val/c0"], "val"), "'val/c0' is already in meta_val"),
        (lambda f: relabel(f, {"val/c0/20.png": "val/c00"}), r"no class 'val/c00'.*did you mean 'val/c0'\?"),
        (lambda f: relabel(f, {"val/c0/20.png": "val/c0"}), "1 item already of that class"),
        (
            lambda f: merge_classes(f, ["train/c0", "val/c0", "test/c1"], "x"),
            "'val/c0', 'test/c1' are in meta_val; .* next: kshot curate tiny move-split val/c0 test/c1 --to meta_train",
        ),
        (lambda f: merge_classes(f, ["train/c0"], "test/c0"), "'train/c0' is in meta_train; needed .* meta_test"),
        (lambda f: merge_classes(f, ["train/c0"], "train/c0"), "into itself changes nothing"),
        (lambda f: merge_classes(f, ["train/c0", "train/c1"], "TRAIN/C2"), "differ only in case"),
        (lambda f: merge_classes(f, ["train/c0"], " "), "empty class name"),
        (lambda f: undo(f), "no edit to undo"),
        (lambda f: undo(f, 3), "found no edit 3"),
        (lambda f: drop(f.with_name("tyni"), ids=["x"]), "no dataset at .*tyni; found: tiny"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_and_changes_nothing(
    folder: Path, edit: Callable[[Path], CurateReport], message: str
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(DataError, match=message):
        edit(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_is_out_already_is_refused_where_nothing_is_left_to_do(folder: Path) -> None:
    drop(folder, ids=["train/c0/0.png"])
    with pytest.raises(DataError, match="found 1 item to drop, none of them in use.*history"):
        drop(folder, ids=["train/c0/0.png"])
    assert drop(folder, ids=["train/c0/0.png", "train/c0/1.png"]).notes == ("1 item of the list was out already",)
    drop(folder, classes=["train/c1"])
    with pytest.raises(DataError, match="class 'train/c1' of tiny is left out already"):
        move_split(folder, ["train/c1"], "val")
    with pytest.raises(DataError, match="item 'train/c1/5.png' is not in use"):
        relabel(folder, {"train/c1/5.png": "train/c2"})


def test_an_edit_that_a_later_one_needs_is_not_undone(folder: Path) -> None:
    merge_classes(folder, ["train/c0", "train/c1"], "train/both")
    move_split(folder, ["train/both"], "val")
    with pytest.raises(DataError, match="edit 2 is about the class 'train/both'.*next: kshot curate tiny undo 2"):
        undo(folder, 1)
    undo(folder, 2)
    undo(folder, 1)
    assert PackedDataset.open(folder).splits.meta_train == ("train/c0", "train/c1", "train/c2", "train/c3")
    with pytest.raises(DataError, match="edit 1 is already undone by edit 4; .*next: kshot curate tiny undo 4"):
        undo(folder, 1)
    undo(folder, 4)
    assert "train/both" in PackedDataset.open(folder).splits.meta_train


def test_one_writer_at_a_time(folder: Path) -> None:
    with hold(folder), pytest.raises(DataError, match="another command is writing"):
        drop(folder, ids=["train/c0/0.png"])


def test_a_crash_before_dataset_json_leaves_the_version_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = PackedDataset.open(folder).content_hash

    def crash(folder: Path, info: object) -> None:
        raise KeyboardInterrupt("died here")

    with monkeypatch.context() as patch:
        patch.setattr(curate, "_write_info", crash)
        patch.setattr(writer, "sweep", lambda folder: None)
        with pytest.raises(KeyboardInterrupt, match="died here"):
            drop(folder, ids=ids(folder)[:30:2] + ids(folder)[30::2])
    assert (folder / "edit-00000.parquet").exists()
    assert PackedDataset.open(folder).content_hash == before
    drop(folder, ids=["train/c0/0.png"])
    assert not (folder / "edit-00000.parquet").exists()


def test_lists_are_read_by_their_columns_and_the_action(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("\ufeffcheck,id,action\nx,a,drop\nx,b,keep\ny,a,drop\ny,c,may drop\ny,,drop\n", encoding="utf-8")
    assert ids_in(path) == ("a",)
    path.write_text("id,class\na,x\nb,y\n")
    assert ids_in(path) == ("a", "b")
    assert classes_in(path) == {"a": "x", "b": "y"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name\na\n", "has the columns name; needed a first line with id"),
        ("", r"has the columns \(none\); needed a first line with id"),
        ("id,action\na,keep\n", "lists no item with the action drop"),
        ("id\n", "lists no item; needed at least one"),
    ],
)
def test_a_list_that_lists_nothing_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        ids_in(tmp_path / "list.csv")
    with pytest.raises(DataError, match="cannot be read"):
        ids_in(tmp_path / "none.csv")


def test_a_list_of_labels_with_two_for_an_item_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("id,class\na,x\na,y\n")
    with pytest.raises(DataError, match="item 'a' has two classes; needed one"):
        classes_in(tmp_path / "list.csv")


def test_an_ingest_that_repeats_a_relabelling_or_a_move_is_no_conflict(tmp_path: Path) -> None:
    def source(class_of_first: str, split: str) -> Path:
        splits = {"a": "train", "b": split, "c": "test", "d": "val"}
        classes = [class_of_first, *"abcdabcdabcd"[1:]]
        for number in range(12):
            Image.fromarray(noise(1, seed=number)[0, :, :, 0]).save(tmp_path / f"{number}.png")
        rows = [f"{number}.png,{name},{splits[name]}" for number, name in enumerate(classes)]
        (tmp_path / "table.csv").write_text("\n".join(["path,class,split", *rows]))
        return tmp_path / "table.csv"

    ingest(source("a", "val"), "toy", tmp_path / "data")
    with pytest.raises(DataError, match="'0.png' is already .* as class 'a', now 'b'; next: kshot curate toy relabel"):
        ingest(source("b", "val"), "toy", tmp_path / "data")
    folder = tmp_path / "data" / "toy"
    relabel(folder, {"0.png": "b"})
    assert ingest(source("b", "val"), "toy", tmp_path / "data").added == 0
    move_split(folder, ["b"], "test")
    assert ingest(source("b", "test"), "toy", tmp_path / "data").added == 0
    assert set(PackedDataset.open(folder).splits.meta_test) == {"b", "c"}


@pytest.mark.parametrize("n_relabelled", [3, 30])
def test_no_order_of_undos_takes_the_class_of_a_relabelling_away(folder: Path, n_relabelled: int) -> None:
    """However long the list is, and also where the undo that brought the class back is undone."""
    merge_classes(folder, ["train/c0", "train/c1"], "train/both")
    undo(folder, 1)
    undo(folder, 2)
    others = [f"{split}/c{kind}/{n}.png" for split in ("val", "test") for kind in range(3) for n in range(60)]
    there = set(PackedDataset.open(folder).manifest["id"].to_pylist())
    relabel(folder, dict.fromkeys([name for name in others if name in there][:n_relabelled], "train/both"))
    for number in (1, 3):
        with pytest.raises(
            DataError, match=r"edit 4 is about the class 'train/both', which would not be there.*undo 4"
        ):
            undo(folder, number)
    undo(folder, 4)
    undo(folder, 3)
    assert "train/both" not in PackedDataset.open(folder).splits.by_class()


def test_a_list_of_findings_drops_items_and_whole_classes(tmp_path: Path) -> None:
    path = tmp_path / "findings.csv"
    path.write_text("check,id,class,action\na,x,,drop\nb,,rare,drop\nb,,rare,drop\nc,y,z,keep\n")
    assert to_drop_in(path) == (("x",), ("rare",))


def test_a_short_row_of_a_list_is_refused_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("id,class\na/1.png,a\na/2.png\n")
    with pytest.raises(DataError, match="line 3: found fewer cells than columns; needed id, class"):
        classes_in(tmp_path / "labels.csv")


def test_items_may_get_a_class_that_is_made_for_them_in_their_split(folder: Path) -> None:
    names = ["train/c0/1.png", "train/c1/6.png"]
    with pytest.raises(DataError, match="has no class 'train/new'; .*next: add --new-class"):
        relabel(folder, dict.fromkeys(names, "train/new"))
    relabel(folder, dict.fromkeys(names, "train/new"), new_class=True)
    dataset = PackedDataset.open(folder)
    assert dataset.splits.meta_train == ("train/c0", "train/c1", "train/c2", "train/c3", "train/new")
    rows = dataset.manifest.to_pandas().set_index("id")
    assert rows.loc[names, "class"].tolist() == ["train/new"] * 2
    assert rows.loc[names, "group"].nunique() == 1
    merge_classes(folder, ["train/new"], "train/c3")
    with pytest.raises(DataError, match="edit 2 is about the class 'train/new', which would not be there; .* undo 2"):
        undo(folder, 1)
    undo(folder, 2)
    undo(folder, 1)
    assert "train/new" not in PackedDataset.open(folder).splits.by_class()
    assert PackedDataset.open(folder).n_stored == 60


def test_a_class_that_is_made_is_in_one_split_and_no_twin_of_another(folder: Path) -> None:
    with pytest.raises(DataError, match="in meta_train and meta_val; needed one split .*next: relabel those of one"):
        relabel(folder, {"train/c0/1.png": "x", ids(folder)[25]: "x"}, new_class=True)
    with pytest.raises(DataError, match="'train/c0' and 'train/C0' differ only in case"):
        relabel(folder, {"train/c0/1.png": "train/C0"}, new_class=True)
    assert PackedDataset.open(folder).info.edits == ()
