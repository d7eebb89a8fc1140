"""Pictures in the layouts of well-known public sets, from the first look to a registered model, by what kshot says."""

import csv
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from tests.copied_project import copied_project, environment, run_flow
from tests.tiny_project import tiny_params

CLASSES = {
    "train": ["star", "wedge", "ring", "slash"],
    "val": ["cross", "dot", "frame"],
    "test": ["bar", "arc", "grid"],
}
IMAGES = 5


def rendered(name: str, number: int) -> Image.Image:
    """A drawing of its class: five lines that the name draws, a little shaken."""
    points = np.random.default_rng(sum(name.encode())).integers(4, 44, (6, 2))
    shaken = points + np.random.default_rng(number).integers(-2, 3, (6, 2))
    image = Image.new("RGB", (48, 48), "white")
    ImageDraw.Draw(image).line([tuple(point) for point in shaken.tolist()], fill="black", width=3)
    return image


def save(path: Path, name: str, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rendered(name, number).save(path)
    return path


def write_table(path: Path, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def image_folder(root: Path) -> None:
    for split, names in CLASSES.items():
        for name in names:
            for number in range(IMAGES):
                save(root / split / name / f"{number:04d}.jpg", name, number)


def three_tables(root: Path) -> None:
    for split, names in CLASSES.items():
        rows = [(f"{name}{number:08d}.jpg", name) for name in names for number in range(IMAGES)]
        for file, name in rows:
            save(root / "images" / file, name, int(file.removeprefix(name)[:-4]))
        write_table(root / f"{split}.csv", ("filename", "label"), rows)


def ids_without_extension(root: Path) -> None:
    rows = []
    for diagnosis, name in enumerate(name for names in CLASSES.values() for name in names):
        for number in range(IMAGES):
            identity = f"{diagnosis * 7919 + number:012x}"
            save(root / "train_images" / f"{identity}.png", name, number)
            rows.append((identity, str(diagnosis)))
    write_table(root / "train.csv", ("id_code", "diagnosis"), rows)
    save(root / "test_images" / "0000000000ff.png", "dot", 99)
    write_table(root / "test.csv", ("id_code",), [("0000000000ff",)])


def metadata(root: Path) -> None:
    rows = []
    for name in (name for names in CLASSES.values() for name in names):
        for number in range(IMAGES):
            save(root / f"{name}-{number}.png", name, number)
            rows.append((f"{name}-{number}.png", name))
    write_table(root / "metadata.csv", ("file_name", "label"), rows)


@pytest.mark.parametrize(
    ("lay_out", "by_split"),
    [(image_folder, True), (three_tables, True), (ids_without_extension, False), (metadata, False)],
)
def test_the_command_that_a_dry_run_prints_leads_to_a_registered_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lay_out: Callable[[Path], None], by_split: bool
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    params = tiny_params()
    params["dataset"]["name"] = "shapes"
    params["task_pool"]["meta_test"]["settings"] = [{"n_way": 2, "k_shot": 1}]
    for split in ("meta_train", "meta_val"):
        params["task_pool"][split]["shape"] = {"n_way": 2, "k_shot": 1, "n_query": 2}
    root = copied_project(tmp_path / "project", params)
    lay_out(tmp_path / "shapes")

    looked = kshot(root, "ingest", str(tmp_path / "shapes"), "--image-size", "16", "--mode", "grey", "--dry-run")
    assert not (root / "data").exists()
    following = looked.splitlines()[-1].removeprefix("next: ")
    packed = kshot(root, *shlex.split(following)[1:])
    assert looked.splitlines()[:-1] == packed.splitlines()[: len(looked.splitlines()) - 1]
    assert "data/shapes: 50 items (50 new), 10 classes" in packed
    if by_split:
        assert "(4 meta_train, 3 meta_val, 3 meta_test)" in packed

    assert f"set dataset.name: {yaml.safe_load((root / 'params.yaml').read_text())['dataset']['name']}" in packed
    assert "tiny version 1, new" in run_flow(root)


def kshot(root: Path, *words: str) -> str:
    (root / "home").mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "kshot", *words], cwd=root, env=environment(root), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
