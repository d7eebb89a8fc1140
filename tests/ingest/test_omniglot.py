import os
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kshot.data.packed import SPLITS, PackedDataset
from kshot.errors import DataError
from kshot.ingest import BUILT_IN, ingest_built_in, omniglot
from tests.ingest.toys import encoded

ARCHIVES = ("images_background.zip", "images_evaluation.zip")


def drawing(seed: int) -> Image.Image:
    """A black bar on white, as in Omniglot: 105x105, one bit a pixel."""
    values = np.ones((105, 105), dtype=bool)
    values[20:80, 10 + 5 * seed : 30 + 5 * seed] = False
    return Image.fromarray(values)


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out as Omniglot, with two small alphabets whose checksums are the expected ones."""
    folder = tmp_path / "omniglot"
    folder.mkdir()
    for number, name in enumerate(ARCHIVES):
        with zipfile.ZipFile(folder / name, "w") as archive:
            for character in (2, 1):
                for drawer in (1, 2):
                    member = f"{name.removesuffix('.zip')}/Alpha{number}/character{character:02d}/{drawer:02d}.png"
                    archive.writestr(member, encoded(drawing(4 * number + 2 * character + drawer)))
    expected = {name: omniglot.content_sha256(omniglot.read_drawings(folder / name)) for name in ARCHIVES}
    monkeypatch.setattr(omniglot, "_CONTENT_SHA256", expected)
    monkeypatch.delenv("KSHOT_OMNIGLOT", raising=False)
    return folder


def test_the_split_is_that_of_vinyals_and_others() -> None:
    splits = omniglot.splits()
    assert [len(splits.of(split)) for split in SPLITS] == [1028, 172, 423]
    assert len(splits.by_class()) == 1623
    assert "Gurmukhi/character41" in splits.meta_train
    assert "Gurmukhi/character42" in splits.meta_test


def test_drawings_come_from_the_named_folder_as_bright_ink(archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSHOT_OMNIGLOT", str(archives))
    records = list(omniglot.records())
    assert [one.id for one in records[:3]] == [
        "Alpha0/character01/01.png",
        "Alpha0/character01/02.png",
        "Alpha0/character02/01.png",
    ]
    assert [one.group for one in records] == ["Alpha0"] * 4 + ["Alpha1"] * 4
    first = records[0].item
    assert first.shape == (28, 28, 1)
    assert first[0, 0, 0] == 0
    assert first[14, 9, 0] > 250
    assert 0 < first.mean() < 128


def test_a_repacked_archive_with_the_same_drawings_passes(archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSHOT_OMNIGLOT", str(archives))
    for name in ARCHIVES:
        with zipfile.ZipFile(archives / name) as archive:
            members = {member: archive.read(member) for member in archive.namelist()}
        with zipfile.ZipFile(archives / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in sorted(members.items()):
                archive.writestr(member, content)
    assert len(list(omniglot.records())) == 8


def test_other_drawings_are_refused(archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSHOT_OMNIGLOT", str(archives))
    with zipfile.ZipFile(archives / ARCHIVES[1], "a") as archive:
        archive.writestr("images_evaluation/Alpha1/character03/01.png", encoded(drawing(9)))
    with pytest.raises(DataError, match=r"the drawings in .*images_evaluation\.zip have sha256 \w{12}; needed"):
        list(omniglot.records())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive"])
def test_a_damaged_archive_is_refused(archives: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setenv("KSHOT_OMNIGLOT", str(archives))
    (archives / ARCHIVES[0]).write_bytes(content)
    with pytest.raises(DataError, match="is not a readable archive of drawings.*either set KSHOT_OMNIGLOT"):
        list(omniglot.records())


def test_a_folder_without_the_archives_is_refused_with_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSHOT_OMNIGLOT", str(tmp_path))
    with pytest.raises(
        DataError, match="has no images_background.zip and no images_evaluation.zip; either set .* or leave"
    ):
        list(omniglot.records())


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(archives: Path) -> Iterator[str]:
    """The address of a local web server that offers the archives."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(archives))) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def test_without_a_folder_the_archives_are_downloaded(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(omniglot, "_URL", server)
    assert len(list(omniglot.records())) == 8


def test_a_failed_download_says_both_ways(server: str, archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(omniglot, "_URL", server)
    (archives / ARCHIVES[1]).unlink()
    with pytest.raises(
        DataError, match="cannot be downloaded .*404.*either set KSHOT_OMNIGLOT to a folder .* or leave"
    ):
        list(omniglot.records())


@pytest.mark.skipif(not os.environ.get("KSHOT_OMNIGLOT"), reason="KSHOT_OMNIGLOT names no folder with the archives")
def test_the_real_omniglot_has_1623_characters_of_20_drawings(tmp_path: Path) -> None:
    report = ingest_built_in(BUILT_IN["omniglot"], "omniglot", tmp_path)
    dataset = PackedDataset.open(report.folder)
    assert report.added == 32_460
    assert report.n_classes == 1623
    assert [len(dataset.class_ids(split)) for split in SPLITS] == [4112, 688, 1692]
    assert set(dataset.class_table("meta_train").counts) == {20}
    assert len(dataset.group_names) == 50
    assert dataset.info.shards[0].sha256 == "e100355b34b16b69eac55f19ccd9687c526b55340226a480e581dda0002b30e4"
