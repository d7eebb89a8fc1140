from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kshot.algorithms import ProtoNetConfig
from kshot.backbones import Conv4Config
from kshot.data.items import ImageKind
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
        (lambda support: support.rename(support.parent / "gone"), r"no folder .*support; need one with"),
    ],
)
def test_unfit_support_folder_is_refused(
    model: str, support: Path, tmp_path: Path, change: Callable[[Path], Path], message: str
) -> None:
    query = save(tmp_path / "q.png", half(columns=True))
    change(support)
    with pytest.raises((DataError, EpisodeError), match=message):
        predict_files(model, support, [query], root=tmp_path)


def test_missing_query_is_refused(model: str, support: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file or folder .*nowhere\.png"):
        predict_files(model, support, [tmp_path / "nowhere.png"], root=tmp_path)
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
