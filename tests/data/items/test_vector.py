import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kshot.data.items import VectorKind
from kshot.data.packed import PackedDataset
from kshot.errors import DataError
from kshot.ingest import ingest

THREE = VectorKind(size=3)


def npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "source", ["0.5, -2,3e1", np.array([0.5, -2, 30]), npy(np.array([0.5, -2, 30], dtype=np.float32))], ids=type
)
def test_numbers_are_read_from_a_text_an_array_and_a_file(source: Any, tmp_path: Path) -> None:
    read = THREE.read(source)
    assert read.item.dtype == np.float32
    assert read.item.tolist() == [0.5, -2, 30]
    if isinstance(source, bytes):
        (tmp_path / "row.npy").write_bytes(source)
        assert THREE.read(tmp_path / "row.npy").item.tolist() == [0.5, -2, 30]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("1,2", r"shape \(2,\); needed \(3,\)"),
        ("1,2,three", "needed numbers with commas between them"),
        ("1,2,nan", "1 of 3 numbers are infinite or not a number"),
        (np.array([1.0, 2.0, 1e300]), "1 of 3 numbers are infinite"),
        (np.array(["1", "2", "3"]), "values of type <U1; needed numbers"),
        (npy(np.array([None, 1, 2])), r"not a \.npy file of numbers"),
        (npy(np.arange(3.0))[:-4], r"not a \.npy file of numbers"),
        (b"", "the file has 0 bytes"),
    ],
)
def test_what_is_no_vector_is_refused(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        THREE.read(source)


def test_an_archive_of_arrays_is_refused() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, np.arange(3.0))
    with pytest.raises(DataError, match="archive of arrays"):
        THREE.read(buffer.getvalue())


def test_facts_count_the_numbers_that_are_not_finite() -> None:
    stored = np.array([[1, 2, 3], [np.nan, np.inf, 0]], dtype=np.float32)
    assert THREE.facts(stored)["not_finite"].tolist() == [0, 2]


def test_class_folders_of_npy_files_are_ingested_and_others_are_listed(tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        (tmp_path / "rows" / name).mkdir(parents=True)
        for row in range(2):
            np.save(tmp_path / "rows" / name / f"{row}.npy", np.array([number, row, 0.25]))
    (tmp_path / "rows" / "a" / "broken.npy").write_bytes(b"no array")

    report = ingest(tmp_path / "rows", "vectors", tmp_path / "data", item=THREE)

    assert (report.added, [row.source for row in report.quarantined]) == (6, ["a/broken.npy"])
    dataset = PackedDataset.open(report.folder)
    assert dataset.item == THREE
    assert dataset.gather(np.array([3])).tolist() == [[1, 1, 0.25]]
    assert dataset.manifest.column_names == ["id", "class", "group", "sha256", "source", "version"]
    again = ingest(tmp_path / "rows", "vectors", tmp_path / "data")
    assert (again.added, again.skipped) == (0, 6)
