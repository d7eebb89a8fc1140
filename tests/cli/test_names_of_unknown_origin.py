"""Names that come with somebody's data: no terminal obeys them, and none ends a command."""

import csv
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from kshot.algorithms import ProtoNetConfig
from kshot.backbones import Conv4Config
from kshot.data.items import ImageKind
from kshot.episodes.episode import EpisodeShape
from kshot.model import ModelConfig, SavedModel, build_learner, save_model
from tests.cli.test_cli import Kshot, kshot  # noqa: F401
from tests.tiny_project import tiny_params

NOT_UTF8 = os.fsdecode(b"caf\xe9")
ODD = (
    *("\x1b[31mred", "\x1b]0;title\x07", "line\rback", "two\nlines", "gnp.\u202etxt", "one\u2028two", "one\x85two"),
    *("[bold]", ":cat:", "\u200b", NOT_UTF8),
)


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20), dtype=np.uint8)).save(path, "PNG")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five classes; in one of them every odd name is that of a picture, of a damaged one, of a note and of a link."""
    folder = tmp_path / "photos"
    for n in range(5):
        for k in range(4):
            picture(folder / f"class {n}" / f"{k}.png", 10 * n + k)
    for n, odd in enumerate(ODD):
        picture(folder / "class 0" / f"{odd}.png", 100 + n)
        (folder / "class 0" / f"{odd}-damaged.png").write_text("not a picture")
        (folder / "class 0" / f"{odd}-gone.png").symlink_to("/nonexistent")
        (folder / "class 0" / f"{odd}.txt").write_text("a note")
        (folder / f"{odd}-loose.png").write_text("not a picture")
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    config = ModelConfig(
        algorithm=ProtoNetConfig(),
        backbone=Conv4Config(width=4),
        item=ImageKind(image_size=16, channels=1),
        train_shape=EpisodeShape(n_way=2, k_shot=1, n_query=1),
    )
    save_model(tmp_path / "model", SavedModel(learner=build_learner(config), config=config))
    return tmp_path / "model"


def obeyed(text: str) -> set[str]:
    """What a terminal would take for more than letters: all of it but the ends of lines."""
    return {letter for letter in text if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - {"\n"}


def test_ingest_and_validate_print_names_harmlessly_and_store_them_truly(
    kshot: Kshot,  # noqa: F811
    tmp_path: Path,
    photos: Path,
) -> None:
    done = kshot(tmp_path, "ingest", str(photos), "--name", "odd", "--image-size", "16")
    assert done.returncode == 0, done.stderr
    assert not obeyed(done.stdout + done.stderr)
    with (tmp_path / "data" / "odd" / "quarantine.csv").open(encoding="utf-8", newline="") as file:
        refused = {row["source"] for row in csv.DictReader(file)}
    for odd in ODD:
        stored = odd.replace("\udce9", r"\udce9")
        assert {f"class 0/{stored}-damaged.png", f"class 0/{stored}-gone.png"} <= refused
    assert r"class 0/caf\udce9.png" in refused

    params = tiny_params() | {"dataset": {"name": "odd"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    done = kshot(tmp_path, "validate")
    assert not obeyed(done.stdout + done.stderr)


@pytest.mark.parametrize("odd", ["\x1b[31mred", "two\nlines", "gnp.\u202etxt", NOT_UTF8])
def test_a_class_of_an_odd_name_is_named_harmlessly(
    kshot: Kshot,  # noqa: F811
    tmp_path: Path,
    photos: Path,
    model: Path,
    odd: str,
) -> None:
    for file in photos.glob("*-loose.png"):
        file.unlink()
    shutil.rmtree(photos / "class 0")
    (photos / "class 1").rename(photos / odd)
    for arguments in (
        ("ingest", str(photos), "--name", "odd", "--image-size", "16"),
        ("predict", str(model), str(photos), str(photos)),
        ("predict", str(model), str(photos / odd), str(photos)),
        ("predict", str(model), str(photos), str(photos / odd / "none.png")),
        ("predict", str(photos / odd), str(photos), str(photos)),
    ):
        done = kshot(tmp_path, *arguments)
        assert done.returncode in (0, 2), done.stderr
        assert not obeyed(done.stdout + done.stderr)


def test_predict_prints_names_harmlessly(kshot: Kshot, tmp_path: Path, photos: Path, model: Path) -> None:  # noqa: F811
    support = tmp_path / "support"
    for n in range(1, 4):
        shutil.copytree(photos / f"class {n}", support / f"class {n}")
    done = kshot(tmp_path, "predict", str(model), "support", str(photos / "class 0"))
    assert done.returncode == 2
    assert not obeyed(done.stdout + done.stderr)
    assert r"\x1b[31mred.png" in done.stdout and "[bold].png" in done.stdout and ":cat:.png" in done.stdout
    assert r"\u202etxt-damaged.png: " in done.stderr and r"caf\udce9.png: its name is not UTF-8" in done.stderr
    one_by_one = kshot(tmp_path, "predict", str(model), "support", str(photos / "class 0" / f"{NOT_UTF8}.png"))
    assert one_by_one.returncode == 0, one_by_one.stderr
    assert r"caf\udce9.png" in one_by_one.stdout


def test_the_trace_of_an_error_shows_names_harmlessly(tmp_path: Path) -> None:
    for arguments in (["--debug", "ingest", "\x1b[31m\r.zip", "--name", "x"], ["ingest", "\x1b[31m\r.zip"]):
        done = subprocess.run(
            [sys.executable, "-m", "kshot", *arguments], cwd=tmp_path, capture_output=True, check=False
        )
        assert rb"\x1b[31m" in done.stderr
        assert not obeyed(done.stderr.decode())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_predict_prints_to_a_stream_of_any_encoding(tmp_path: Path, photos: Path, model: Path, encoding: str) -> None:
    (photos / "class 1").rename(photos / "größe 零")
    for file in photos.glob("*-loose.png"):
        file.unlink()
    shutil.rmtree(photos / "class 0")
    command = [sys.executable, "-m", "kshot", "predict", "model", "photos", "photos", "photos/größe 零/0.png"]
    environment = os.environ | {"PYTHONIOENCODING": encoding, "LANG": "C", "LC_ALL": "C"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert "größe".encode(encoding, "backslashreplace") in done.stdout
