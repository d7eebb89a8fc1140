import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kshot.algorithms import ProtoNetConfig
from kshot.backbones import Conv4Config
from kshot.data.items import ImageKind
from kshot.data.names import in_counts
from kshot.episodes.episode import EpisodeShape
from kshot.errors import DataError, EpisodeError, ModelError
from kshot.model import ModelConfig, SavedModel, build_learner, save_model
from kshot.serving.prediction import RefusedImage, predict_files


@pytest.fixture
def model(tmp_path: Path) -> str:
    config = ModelConfig(
        algorithm=ProtoNetConfig(),
        backbone=Conv4Config(width=4),
        item=ImageKind(image_size=16, channels=1),
        train_shape=EpisodeShape(n_way=2, k_shot=1, n_query=1),
    )
    save_model(tmp_path / "model", SavedModel(learner=build_learner(config), config=config))
    return str(tmp_path / "model")


@pytest.fixture
def support(tmp_path: Path) -> Path:
    """Two classes that any network tells apart: left halves and top halves; the first has two images."""
    folder = tmp_path / "support"
    save(folder / "left" / "1.png", half(columns=True))
    save(folder / "left" / "2.png", half(columns=True))
    save(folder / "top" / "1.png", half(columns=False))
    return folder


def half(*, columns: bool) -> np.ndarray:
    pixels = np.zeros((20, 20), dtype=np.uint8)
    pixels[:, :10] = 255
    return pixels if columns else pixels.T


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def emptied(folder: Path) -> Path:
    for file in folder.iterdir():
        file.unlink()
    return folder


def test_a_folder_that_alone_holds_the_pictures_of_a_class_is_no_class(model: str, tmp_path: Path) -> None:
    save(tmp_path / "shown" / "left" / "images" / "1.png", half(columns=True))
    save(tmp_path / "shown" / "top" / "1.png", half(columns=False))
    report = predict_files(model, tmp_path / "shown", [tmp_path / "shown" / "left"], root=tmp_path)
    assert report.classes == ("left", "top")
    assert [image.class_name for image in report.predicted] == ["left"]


def test_each_query_gets_the_class_that_it_looks_like(model: str, support: Path, tmp_path: Path) -> None:
    one = save(tmp_path / "queries" / "one.png", half(columns=False))
    two = save(tmp_path / "queries" / "below" / "two.png", half(columns=True))
    (tmp_path / "queries" / ".hidden").write_text("not an image")

    report = predict_files(model, support, [tmp_path / "queries", one], root=tmp_path)

    assert report.model == model
    assert report.classes == ("left", "top")
    assert [(row.file, row.class_name) for row in report.predicted] == [(two, "left"), (one, "top")]
    assert all(0.5 < row.probability <= 1 for row in report.predicted)
    assert report.refused == ()


def test_classes_may_lie_in_group_folders(model: str, support: Path, tmp_path: Path) -> None:
    (tmp_path / "grouped").mkdir()
    support.rename(tmp_path / "grouped" / "shapes")
    query = save(tmp_path / "q.png", half(columns=True))
    assert predict_files(model, tmp_path / "grouped", [query], root=tmp_path).classes == ("shapes/left", "shapes/top")


def test_query_that_is_no_image_is_listed_and_the_others_are_classified(
    model: str, support: Path, tmp_path: Path
) -> None:
    good = save(tmp_path / "good.png", half(columns=True))
    text, empty = tmp_path / "text.png", tmp_path / "empty.png"
    text.write_text("hello")
    empty.write_bytes(b"")

    report = predict_files(model, support, [text, good, empty], root=tmp_path)

    assert [row.file for row in report.predicted] == [good]
    assert [refused.file for refused in report.refused] == [text, empty]
    assert report.refused[1] == RefusedImage(file=empty, reason="the file has 0 bytes")


def leavings(folder: Path) -> None:
    """What file managers, archives and people leave beside pictures."""
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._1.png", "Icon\r", "notes.txt"):
        (folder / name).write_bytes(b"\xd0\xcf\x11\xe0")
    (folder / "__MACOSX" / "left").mkdir(parents=True)
    (folder / "__MACOSX" / "left" / "._1.png").write_bytes(b"x")


def test_leavings_of_the_system_are_neither_classes_nor_images_and_are_counted(
    model: str, support: Path, tmp_path: Path
) -> None:
    query = save(tmp_path / "queries" / "one.png", half(columns=False))
    for folder in (support, support / "left", query.parent):
        leavings(folder)

    report = predict_files(model, support, [query.parent], root=tmp_path)

    assert report.classes == ("left", "top")
    assert [row.file for row in report.predicted] == [query]
    assert report.refused == ()
    assert in_counts(row.reason for row in report.left_out) == "18 files of the system, 3 annotations or notes"


def test_a_query_that_is_given_by_itself_is_read_whatever_its_name_says(
    model: str, support: Path, tmp_path: Path
) -> None:
    png = save(tmp_path / "one.png", half(columns=False))
    given = [tmp_path / ".hidden", tmp_path / "one_mask.png", tmp_path / "Thumbs.db"]
    for path in given:
        path.write_bytes(png.read_bytes())
    latin = tmp_path / os.fsdecode(b"caf\xe9.png")
    latin.write_bytes(png.read_bytes())
    report = predict_files(model, support, [*given, latin], root=tmp_path)
    assert [row.file for row in report.predicted] == [*given, latin]


def test_links_to_nothing_in_a_query_folder_are_named_and_the_others_are_classified(
    model: str, support: Path, tmp_path: Path
) -> None:
    good = save(tmp_path / "queries" / "good.png", half(columns=True))
    (good.parent / "gone.png").symlink_to("/nonexistent")
    (good.parent / os.fsdecode(b"caf\xe9.png")).write_bytes(good.read_bytes())

    report = predict_files(model, support, [good.parent], root=tmp_path)

    assert [row.file for row in report.predicted] == [good]
    assert [(row.file.name, row.reason) for row in report.refused] == [
        ("caf\\udce9.png", "its name is not UTF-8; rename it"),
        ("gone.png", "a link to nothing"),
    ]


def test_masks_beside_support_images_are_no_examples(model: str, support: Path, tmp_path: Path) -> None:
    save(support / "left" / "1_mask.png", half(columns=False))
    query = save(tmp_path / "q.png", half(columns=True))
    report = predict_files(model, support, [query], root=tmp_path)
    assert [row.class_name for row in report.predicted] == ["left"]
    assert [row.source for row in report.left_out] == ["left/1_mask.png"]


def test_support_image_that_is_no_image_stops_the_prediction(model: str, support: Path, tmp_path: Path) -> None:
    (support / "top" / "2.png").write_text("hello")
    query = save(tmp_path / "q.png", half(columns=True))
    with pytest.raises(DataError, match=r"refused as support: .*2\.png \(not a PNG"):
        predict_files(model, support, [query], root=tmp_path)


def test_long_list_of_refused_files_is_cut(model: str, support: Path, tmp_path: Path) -> None:
    queries = [tmp_path / f"{n}.png" for n in range(8)]
    for query in queries:
        query.write_bytes(b"")
    with pytest.raises(DataError, match=r"refused as query: .*4\.png \(the file has 0 bytes\); and 3 more; need"):
        predict_files(model, support, queries, root=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda support: (support / "top").rename(support.parent / "gone"), r"of 1 class; need at least 2"),
        (lambda support: save(support / "loose.png", half(columns=True)), r"loose\.png is in no class folder"),
        (lambda support: support.rename(support.parent / "gone"), r"no folder .*support; need one with.*; next: ls /"),
        (lambda support: (support / "dog").mkdir(), r"no image in the class folder .*dog; need .*; next: put images"),
        (lambda support: (support / "pets" / "dog").mkdir(parents=True), r"no image in the class folder .*pets"),
        (
            lambda support: leavings(emptied(support / "top")),
            r"no image in the class folder .*top; need at least one",
        ),
        (lambda support: (support / "top" / "2.png").symlink_to("/nonexistent"), r"2\.png \(a link to nothing\); need"),
        (
            lambda support: save(support / "top" / "more" / "1.png", half(columns=True)),
            r"'top' holds pictures, and so does the folder 'top/more' in it; needed .*; next: move",
        ),
        (
            lambda support: save(support / "a" / "b" / "c" / "1.png", half(columns=True)),
            r"'a/b/c' is a folder 3 levels down that holds pictures; needed .*; next: move",
        ),
    ],
)
def test_unfit_support_folder_is_refused(
    model: str, support: Path, tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    query = save(tmp_path / "q.png", half(columns=True))
    change(support)
    with pytest.raises((DataError, EpisodeError), match=message):
        predict_files(model, support, [query], root=tmp_path)


def test_missing_query_is_refused(model: str, support: Path, tmp_path: Path) -> None:
    good = save(tmp_path / "q.png", half(columns=True))
    (tmp_path / "gone.png").symlink_to("/nonexistent")
    with pytest.raises(DataError, match=rf"no file or folder .*nowhere/1\.png; need .*; next: ls {tmp_path}$"):
        predict_files(model, support, [good, tmp_path / "nowhere" / "1.png"], root=tmp_path)
    with pytest.raises(DataError, match=rf"gone\.png is a link to nothing; need .*; next: ls {tmp_path}$"):
        predict_files(model, support, [good, tmp_path / "gone.png"], root=tmp_path)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"no query image in .*nothing; need"):
        predict_files(model, support, [tmp_path / "nothing"], root=tmp_path)


def test_unknown_models_are_refused(support: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    query = save(tmp_path / "q.png", half(columns=True))
    with pytest.raises(ModelError, match=r"no model in .*nowhere"):
        predict_files(str(tmp_path / "nowhere"), support, [query], root=tmp_path)
    with pytest.raises(ModelError, match=r"no model registry at"):
        predict_files("models:/kshot-glyphs@champion", support, [query], root=tmp_path)
