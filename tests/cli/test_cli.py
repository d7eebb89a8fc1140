"""The command line: its frozen surface, its one-line errors and exit codes."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml
from PIL import Image

from kshot.algorithms import AlgorithmConfig, SimpleShotConfig, TIMConfig
from kshot.backbones import Conv4Config
from kshot.cli.app import app, main
from kshot.config import load_params
from kshot.data.items import ImageKind
from kshot.data.packed import PackedDataset
from kshot.episodes.episode import EpisodeShape
from kshot.model import ModelConfig, SavedModel, build_learner, save_model
from kshot.runtime.error_file import error_file
from kshot.stages import task_pool
from kshot.workspace import Workspace
from tests.registry.test_gate import add_version
from tests.tiny_project import tiny_params, write_project

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


Kshot = Callable[..., Done]


@pytest.fixture
def kshot(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kshot:
    """Runs `kshot ARGUMENT...` in a folder, in this process."""

    def run(root: Path, *arguments: str) -> Done:
        monkeypatch.chdir(root)
        monkeypatch.setattr(sys, "argv", ["kshot", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return Done(int(ended.value.code or 0), out, err)

    return run


def test_commands_and_options_are_these() -> None:
    """Settings of a run belong into params.yaml: a new option has to be meant."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    found = {name: sorted(p.name for p in command.params) for name, command in commands.items()}
    ingest = [
        *(
            "announce",
            "class_column",
            "dry_run",
            "fit",
            "group_column",
            "image_size",
            "images_in",
            "invert",
            "keep_masks",
            "layout",
        ),
        *("licence", "min_images", "mode", "name", "names", "no_tables", "path_column", "rotations", "seed"),
        *("several_labels", "source", "split_by", "split_column", "splits", "value_range"),
    ]
    assert found == {
        "ingest": ingest,
        "unite": [],
        "announce": ["name"],
        "difficulty": ["name"],
        "stage": ["item", "name"],
        "validate": [],
        "pool": [],
        "train": [],
        "evaluate": [],
        "cross-domain": ["dataset"],
        "register": [],
        "promote": ["approve", "version"],
        "rollback": ["model", "reason"],
        "history": ["model"],
        "compare": ["after", "before", "model"],
        "report": ["model", "version"],
        "predict": ["model", "queries", "support"],
        "serve": ["answers", "galleries", "host", "keys", "model", "name", "port", "settings"],
        "serve-key": ["keys", "name", "write"],
        "monitor": ["answers", "gallery", "reference", "window"],
        "export": ["format_", "int8", "model", "support", "to", "version"],
        "doctor": ["stack"],
        "kernels": [],
        "preset": ["name"],
        "algorithms": [],
        "curate": ["name"],
        "weights": [],
        "gallery": [],
    }
    operations = commands["weights"].commands
    assert {name: sorted(p.name for p in command.params) for name, command in operations.items()} == {
        "add": ["input_size", "licence", "mean", "name", "source", "std"],
        "list": [],
    }
    operations = commands["curate"].commands
    assert {name: sorted(p.name for p in command.params) for name, command in operations.items()} == {
        "drop": ["class_", "finding", "ids", "list_", "names", "reason"],
        "relabel": ["items", "list_", "new_class", "reason", "to"],
        "move-split": ["classes", "finding", "reason", "to"],
        "merge-classes": ["classes", "into", "reason"],
        "min-images": ["n", "reason"],
        "undo": ["number", "reason"],
        "history": [],
        "erase": ["class_", "ids", "list_", "reason", "yes"],
    }


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("scratch", "dent", "stain", "crack", "hole"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.jpg")
    (tmp_path / "photos" / "dent" / "broken.png").write_text("not an image")
    return tmp_path / "photos"


def test_ingest_packs_photos_lists_damaged_files_and_says_what_to_do_next(
    kshot: Kshot, tmp_path: Path, photos: Path
) -> None:
    done = kshot(tmp_path, "ingest", str(photos), "--name", "defects", "--image-size", "32")
    assert done.returncode == 0, done.stderr
    assert "data/defects: 20 items (20 new), 5 classes" in done.stdout
    assert "refused: dent/broken.png" in done.stderr
    assert "set dataset.name: defects in params.yaml, then make train" in done.stdout
    again = kshot(tmp_path, "ingest", str(photos), "--name", "defects")
    assert "20 items (0 new)" in again.stdout, again.stderr


def test_ingest_loads_no_library_that_it_does_not_need(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9), "red").save(tmp_path / "photos" / name / "1.png")
    program = (
        "import atexit, sys\n"
        "from kshot.cli.app import main\n"
        "atexit.register(lambda: print('loaded:', {'torch', 'pandas', 'scipy', 'matplotlib'} & sys.modules.keys()))\n"
        "main()"
    )
    command = [sys.executable, "-c", program, "ingest", "photos", "--name", "photos"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("loaded: set()\n")
    assert "3 items (3 new)" in done.stdout


def test_ingest_fits_pictures_as_asked_and_keeps_to_it(kshot: Kshot, tmp_path: Path, photos: Path) -> None:
    looked = kshot(tmp_path, "ingest", str(photos), "--fit", "pad", "--image-size", "16", "--dry-run")
    assert f"next: kshot ingest {photos} --fit pad --image-size 16 --name photos" in looked.stdout
    done = kshot(tmp_path, "ingest", str(photos), "--name", "defects", "--image-size", "16", "--fit", "pad")
    assert done.returncode == 0, done.stderr
    dataset = PackedDataset.open(tmp_path / "data" / "defects")
    assert isinstance(dataset.item, ImageKind) and dataset.item.fit == "pad"
    row = dataset.manifest["id"].to_pylist().index("dent/0.jpg")
    assert np.array_equal(dataset.gather(np.array([row]))[0], dataset.item.read(photos / "dent" / "0.jpg").item)
    for same in ((), ("--fit", "pad")):
        again = kshot(tmp_path, "ingest", str(photos), "--name", "defects", *same)
        assert "20 items (0 new)" in again.stdout, again.stderr
    for other in ("crop", "stretch"):
        refused = kshot(tmp_path, "ingest", str(photos), "--name", "defects", "--fit", other)
        assert refused.returncode == 2
        assert "holds colour items of 16 pixels (padded to squares, " in refused.stderr
        assert "append with the same settings, or ingest under a new --name" in refused.stderr


def test_ingest_makes_items_as_large_as_encoders_want_them_and_no_larger(
    kshot: Kshot, tmp_path: Path, photos: Path
) -> None:
    for size in (224, 336, 518):
        done = kshot(tmp_path, "ingest", str(photos), "--name", f"of-{size}", "--image-size", str(size))
        assert done.returncode == 0, done.stderr
        assert PackedDataset.open(tmp_path / "data" / f"of-{size}").item.shape == (size, size, 3)
    for size in (7, 1025):
        done = kshot(tmp_path, "ingest", str(photos), "--name", "wrong", "--image-size", str(size))
        assert (done.returncode, f"--image-size {size}; need 8 to 1024 pixels" in done.stderr) == (2, True)


def test_ingest_says_the_range_of_deep_pictures_and_takes_another(kshot: Kshot, tmp_path: Path) -> None:
    for number, name in enumerate(["scratch", "dent", "crack"]):
        (tmp_path / "scans" / name).mkdir(parents=True)
        values = np.arange(16 * 16, dtype=np.uint16).reshape(16, 16) * 16
        Image.fromarray(np.roll(values, number)).save(tmp_path / "scans" / name / "0.png")
    done = kshot(tmp_path, "ingest", "scans", "--name", "found", "--image-size", "16", "--mode", "grey")
    assert done.returncode == 0, done.stderr
    said = "3 of 3 pictures are deeper than 8 bits: values 0..4080 are stretched to 0..255 (--range LOW:HIGH sets it)"
    assert said in done.stdout
    done = kshot(tmp_path, "ingest", "scans", "--name", "given", "--image-size", "16", "--range", "0:2040")
    assert "3 of 3 pictures hold values outside 0..2040, which are clipped" in done.stdout, done.stderr
    for wrong in ("2040", "9:1", "a:b", "0:nan", "0:inf", "percentiles"):
        done = kshot(tmp_path, "ingest", "scans", "--name", "wrong", "--range", wrong)
        assert done.returncode == 2
        assert f"--range {wrong}; need LOW:HIGH, two numbers with the lower first, or percentile" in done.stderr
    done = kshot(tmp_path, "ingest", "scans", "--name", "found", "--range", "percentile")
    assert (done.returncode, "next: leave out --range" in done.stderr) == (2, True)


def test_ingest_without_a_name_or_with_a_bad_source_is_one_line_and_exit_2(
    kshot: Kshot, tmp_path: Path, photos: Path
) -> None:
    for arguments in ([str(photos)], [str(tmp_path / "none"), "--name", "x"], [str(photos), "--name", "../x"]):
        done = kshot(tmp_path, "ingest", *arguments)
        assert done.returncode == 2
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and "Traceback" not in done.stderr
    assert not (tmp_path / "data" / "x").exists()


def test_a_stage_without_params_or_data_is_one_line_and_exit_2(kshot: Kshot, tmp_path: Path) -> None:
    done = kshot(tmp_path, "pool")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no params.yaml" in done.stderr
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tiny_params()))
    done = kshot(tmp_path, "pool")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "kshot ingest" in done.stderr


def test_debug_shows_the_trace(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kshot", "--debug", "pool"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_stage_of_dvc_yaml_is_run_by_its_name(kshot: Kshot, tmp_path: Path) -> None:
    root = write_project(tmp_path, tiny_params())
    done = kshot(root, "stage", "task_pool")
    assert done.returncode == 0, done.stderr
    assert (root / "artifacts/task_pool/pools.json").exists()


def test_a_command_in_a_subfolder_works_on_the_project_and_takes_paths_from_where_one_stands(
    kshot: Kshot, tmp_path: Path
) -> None:
    root = write_project(tmp_path / "project", tiny_params())
    (root / "dvc.yaml").write_text("stages: {}\n")
    below = root / "notes"
    below.mkdir()
    for stage in ("pool", "train"):
        done = kshot(below, stage)
        assert done.returncode == 0, done.stderr
    assert (root / "artifacts/task_pool/pools.json").exists()
    for name, value in {"dark": 0, "light": 255}.items():
        (below / "support" / name).mkdir(parents=True)
        Image.new("L", (16, 16), value).save(below / "support" / name / "1.png")
    done = kshot(below, "predict", "../artifacts/meta_train/model", "support", "support/dark/1.png")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in below.iterdir()] == ["support"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("pool",), "no stage 'pool'; known: validate, task_pool,"),
        (("cross_domain",), "the stage cross_domain was given no item; need one of cross_domain in dvc.yaml"),
        (("task_pool", "maps"), "the stage task_pool was given the item 'maps'; need none"),
    ],
)
def test_an_unknown_stage_and_an_item_too_few_or_too_many_are_refused(
    kshot: Kshot, tmp_path: Path, arguments: tuple[str, ...], error: str
) -> None:
    done = kshot(write_project(tmp_path, tiny_params()), "stage", *arguments)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: {error}")


def test_an_error_is_also_left_in_the_file_that_the_environment_names(
    kshot: Kshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with error_file() as file:
        monkeypatch.setenv("KSHOT_ERROR_FILE", str(file.path))
        done = kshot(tmp_path, "stage", "task_pool")
        left = file.read()
    assert left is not None
    assert (left.kind, left.exit_code) == ("ConfigError", 2)
    assert done.stderr == f"error: {left.message}\n"


def test_ctrl_c_ends_with_130_and_without_a_trace(tmp_path: Path) -> None:
    params = tiny_params()
    params["meta_train"]["training"] |= {"n_steps": 100_000, "validate_every": 100_000, "patience": 1}
    root = write_project(tmp_path, params)
    task_pool.run(load_params(root / "params.yaml"), Workspace(root))
    command = [sys.executable, "-m", "kshot", "train"]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        while not list((root / ".kshot/checkpoints").glob("*/step-?????????")):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output


def test_a_preset_replaces_a_preset_but_never_the_users_edits(kshot: Kshot, tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "presets", tmp_path / "presets")
    assert kshot(tmp_path, "preset", "demo").returncode == 0
    assert kshot(tmp_path, "preset", "omniglot-maml").returncode == 0
    assert (tmp_path / "params.yaml").read_bytes() == (tmp_path / "presets/omniglot-maml.yaml").read_bytes()
    (tmp_path / "params.yaml").write_text("mine")
    done = kshot(tmp_path, "preset", "demo")
    assert done.returncode == 2 and "params.yaml has edits of yours" in done.stderr
    assert (tmp_path / "params.yaml").read_text() == "mine"
    done = kshot(tmp_path, "preset", "demmo")
    known = ", ".join(path.stem for path in sorted((REPOSITORY / "presets").glob("*.yaml")))
    assert done.returncode == 2 and f"known: {known};" in done.stderr


@pytest.mark.parametrize(("config", "said"), [(TIMConfig(), True), (SimpleShotConfig(), False)])
def test_predict_says_where_scores_of_queries_together_do_not_hold(
    kshot: Kshot, tmp_path: Path, config: AlgorithmConfig, said: bool
) -> None:
    root = write_project(tmp_path, tiny_params())
    model = ModelConfig(
        algorithm=config,
        backbone=Conv4Config(width=4),
        item=ImageKind(image_size=16, channels=1),
        train_shape=EpisodeShape(n_way=2, k_shot=1, n_query=1),
    )
    save_model(root / "model", SavedModel(learner=build_learner(model), config=model))
    for name, shade in (("dark", 0), ("light", 200)):
        (root / "support" / name).mkdir(parents=True)
        Image.fromarray(np.full((16, 16), shade, np.uint8)).save(root / "support" / name / "1.png")
    done = kshot(root, "predict", "model", "support", "support/dark/1.png")
    assert done.returncode == 0, done.stderr
    words = "each image was answered alone, non-transductive: the model's transductive scores do not hold here"
    assert (words in done.stderr.splitlines()) == said


def test_stages_by_hand_then_predict_from_the_model_folder(kshot: Kshot, tmp_path: Path) -> None:
    root = write_project(tmp_path, tiny_params())
    for stage in ("pool", "train", "evaluate"):
        done = kshot(root, stage)
        assert done.returncode == 0, done.stderr
    rng = np.random.default_rng(1)
    patterns = {name: rng.integers(0, 256, (16, 16), dtype=np.uint8) for name in ("zig", "zag")}
    for name, pattern in patterns.items():
        (root / "support" / name).mkdir(parents=True)
        Image.fromarray(pattern).save(root / "support" / name / "1.png")
        Image.fromarray(pattern).save(root / f"query-{name}.png")
    done = kshot(root, "predict", "artifacts/meta_train/model", "support", "query-zig.png", "query-zag.png")
    assert done.returncode == 0, done.stderr
    answers = [line.split() for line in done.stdout.splitlines() if "query-" in line]
    assert [(words[1], words[3]) for words in answers] == [("query-zig.png", "zig"), ("query-zag.png", "zag")]


@pytest.mark.usefixtures("smoke_test_here")
def test_a_version_is_exported_by_its_number_its_alias_and_from_its_folder(kshot: Kshot, project: Path) -> None:
    write_project(project, tiny_params())
    assert [add_version(project, key, accuracy=0.5) for key in ("1", "2")] == [1, 2]
    (project / "params.yaml").write_text(yaml.safe_dump(tiny_params()))  # which a version of a toy wrote over
    assert kshot(project, "promote", "--version", "2").returncode == 0
    weights = []
    for name, *options in (("1",), ("models:/tiny@champion", "--to", "by-alias"), ("2", "--model", "tiny")):
        done = kshot(project, "export", name, "--format", "torch", *options)
        assert done.returncode == 0, done.stderr
        folder = project / (options[1] if "--to" in options else f".kshot/exports/tiny-{name}")
        found = json.loads((folder / "export.json").read_text())["model"]
        assert found["name"] == "tiny" and (folder / "encoder.pt2").exists()
        weights.append((found["version"], found["weights_sha256"]))
    assert [version for version, _ in weights] == [1, 2, 2]
    assert weights[0][1] != weights[1][1] == weights[2][1]
    unknown = kshot(project, "export", "7", "--format", "torch")
    assert (unknown.returncode, "tiny has no version 7; known: 1, 2" in unknown.stderr) == (2, True)
    taken = kshot(project, "export", "1", "--format", "torch", "--to", "data")
    assert (taken.returncode, "holds something else than an export" in taken.stderr) == (2, True)


def test_the_presets_include_the_default_params() -> None:
    assert (REPOSITORY / "params.yaml").read_bytes() == (REPOSITORY / "presets/demo.yaml").read_bytes()


@pytest.mark.usefixtures("smoke_test_here")
def test_a_champion_is_promoted_taken_back_and_the_history_told(kshot: Kshot, project: Path) -> None:
    write_project(project, tiny_params())
    versions = [add_version(project, key, accuracy=accuracy) for key, accuracy in (("1", 0.5), ("2", 0.4), ("3", 0.6))]
    assert versions == [1, 2, 3]
    (project / "params.yaml").write_text(yaml.safe_dump(tiny_params()))  # which a version of a toy wrote over
    assert "worse, -10.00 ± 0.00 points" in kshot(project, "compare", "1", "2").stdout
    assert kshot(project, "promote", "--version", "1").returncode == 0
    refused = kshot(project, "promote", "--version", "2")
    assert (refused.returncode, refused.stdout.startswith("tiny: version 2 refused: worse: -10.00")) == (3, True)
    assert kshot(project, "promote").stdout.startswith("tiny: version 3 promoted: better: +10.00")
    back = kshot(project, "rollback", "--reason", "complaints")
    assert back.stdout == "version 1 is champion again, in place of version 3\n"
    told = kshot(project, "history").stdout
    assert all(word in told for word in ("promote", "rollback", "complaints", "moved"))
    nowhere = kshot(project, "rollback", "--reason", "more")
    assert (nowhere.returncode, nowhere.stderr) == (
        2,
        "error: tiny has no champion before version 1; need one to go back to\n",
    )
    unknown = kshot(project, "history", "--model", "other")
    assert (unknown.returncode, unknown.stderr.startswith("error: no registered model 'other'; known: tiny")) == (
        2,
        True,
    )
