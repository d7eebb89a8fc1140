"""The stage with real processes: two torchrun workers, a kill in the middle, a killed worker."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kshot.backbones.layers.native import build_native
from kshot.backbones.layers.recompute import use_recomputation
from kshot.config import load_params
from kshot.errors import ConfigError, DataError, EpisodeError, TrainingError
from kshot.stages import meta_train, task_pool
from kshot.stages import pretrain as pretrain_stage
from kshot.workspace import Workspace
from tests.processes import wait_until_gone
from tests.tiny_dataset import tiny_dataset
from tests.tiny_project import tiny_params, write_project
from tests.trainings import (
    ENVIRONMENT,
    LONG,
    assert_same_weights,
    command_line,
    descendants,
    kill_all,
    project,
    train_command,
    wait_for_checkpoint,
    weights,
    workers_of,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    use_recomputation(False)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose training ran through in one process."""
    torch.set_num_threads(1)
    root = project(tmp_path_factory.mktemp("unbroken"))
    meta_train.run(load_params(root / "params.yaml"), Workspace(root))
    return root


@pytest.fixture(scope="module")
def long_unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `unbroken`, for as many steps as the trainings that are killed."""
    torch.set_num_threads(1)
    root = project(tmp_path_factory.mktemp("long_unbroken"), training=LONG | {"checkpoint_every_s": 30})
    meta_train.run(load_params(root / "params.yaml"), Workspace(root))
    return root


def kill_at_first_checkpoint(process: subprocess.Popen[str], root: Path) -> None:
    wait_for_checkpoint(root)
    kill_all(process)


def test_the_stage_writes_model_history_and_metrics(unbroken: Path) -> None:
    folder = unbroken / "artifacts/meta_train"
    written = {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
    assert written == {"model/model.json", "model/weights.safetensors", "history.parquet", "metrics.json"}


def test_augmentation_is_the_same_in_one_process_and_in_two(tmp_path: Path) -> None:
    found = []
    for n_processes in (1, 2):
        params = tiny_params()
        params["meta_train"]["augment"] = {
            "support": [{"name": "randaugment"}, {"name": "noise"}],
            "query": [{"name": "crop"}, {"name": "cutout"}],
            "mix": {"name": "cutmix"},
        }
        params["process"]["n_processes"] = n_processes
        root = write_project(tmp_path / str(n_processes), params)
        task_pool.run(load_params(root / "params.yaml"), Workspace(root))
        subprocess.run([sys.executable, "-m", "kshot", "train"], cwd=root, env=ENVIRONMENT, check=True)
        found.append(root)
    assert_same_weights(*found)


@pytest.mark.parametrize("name", ["simclr", "rotation", "supervised"])
def test_pretraining_is_the_same_in_one_process_and_in_two(tmp_path: Path, name: str) -> None:
    found = []
    for n_processes in (1, 2):
        params = tiny_params()
        params["pretrain"] = {"name": name, "n_steps": 4, "batch_size": 4, "batches_per_step": 2, "validate_every": 2}
        params["process"]["n_processes"] = n_processes
        root = write_project(tmp_path / str(n_processes), params)
        task_pool.run(load_params(root / "params.yaml"), Workspace(root))
        subprocess.run([sys.executable, "-m", "kshot", "stage", "pretrain"], cwd=root, env=ENVIRONMENT, check=True)
        found.append(load_file(root / "artifacts/pretrain/pretrained/weights.safetensors"))
        assert json.loads((root / "artifacts/pretrain/metrics.json").read_text())["processes"] == n_processes
    assert all(torch.equal(tensor, found[1][key]) for key, tensor in found[0].items())


def test_a_step_that_does_not_fit_into_memory_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kshot.training.loop.free_bytes", lambda device: 1000)
    with pytest.raises(
        TrainingError, match=r"a step needs about \d.* MiB of memory; 0 MiB are free; next: set .*fewer"
    ):
        meta_train.run(load_params(project(tmp_path / "one") / "params.yaml"), Workspace(tmp_path / "one"))
    assert not (tmp_path / "one/artifacts/meta_train/model").exists()
    anyway = project(tmp_path / "other", check_memory=False)
    meta_train.run(load_params(anyway / "params.yaml"), Workspace(anyway))
    assert "a step needs" not in capfd.readouterr().out


def test_a_step_that_would_fit_with_less_kept_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kshot.training.loop.free_bytes", lambda device: 1000)
    params = tiny_params()
    params["backbone"] = {"name": "resnet12", "widths": [4, 4, 4, 4]}
    workspace = Workspace(write_project(tmp_path, params))
    loaded = load_params(workspace.params)
    task_pool.run(loaded, workspace)
    said = r"next: set process\.recompute: true \(then about \d+ MiB\), fewer classes"
    with pytest.raises(TrainingError, match=said):
        meta_train.run(loaded, workspace)
    again = replace(loaded, process=replace(loaded.process, recompute=True))
    with pytest.raises(TrainingError, match="next: set fewer classes"):
        meta_train.run(again, workspace)


@pytest.mark.parametrize("pretrain", ["supervised", "simclr"])
def test_a_run_that_recomputes_ends_with_the_same_weights(tmp_path: Path, pretrain: str) -> None:
    found = []
    for recompute in (False, True):
        params = tiny_params()
        params["backbone"] = {"name": "resnet12", "widths": [4, 4, 4, 4], "drop_rate": 0.2}
        params["pretrain"] = {"name": pretrain, "n_steps": 2, "batch_size": 4, "validate_every": 2}
        params["meta_train"] |= {"initial": "pretrained"}
        params["process"]["recompute"] = recompute
        workspace = Workspace(write_project(tmp_path / str(recompute), params))
        loaded = load_params(workspace.params)
        task_pool.run(loaded, workspace)
        pretrain_stage.run(loaded, workspace)
        meta_train.run(loaded, workspace)
        found.append((workspace.pretrained_model / "weights.safetensors", workspace.weights))
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("n_processes", [2, 4])
def test_several_processes_end_with_the_weights_of_one_to_the_bit(
    tmp_path: Path, unbroken: Path, n_processes: int
) -> None:
    root = project(tmp_path, n_processes=n_processes)
    done = train_command(root)
    output, _ = done.communicate(timeout=120)
    assert done.returncode == 0, output
    assert_same_weights(root, unbroken)
    assert json.loads((root / "artifacts/meta_train/metrics.json").read_text())["processes"] == n_processes


def test_killed_in_two_processes_and_gone_on_in_one_the_weights_are_equal_to_the_bit(
    tmp_path: Path, long_unbroken: Path
) -> None:
    root = project(tmp_path, n_processes=2, training=LONG)
    kill_at_first_checkpoint(train_command(root), root)
    assert not (root / "artifacts/meta_train/model").exists()
    settings = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(settings.replace("n_processes: 2", "n_processes: 1"))
    done = train_command(root)
    output, _ = done.communicate(timeout=120)
    assert done.returncode == 0, output
    assert "resuming from the checkpoint of step" in output
    assert_same_weights(root, long_unbroken)


def test_killed_and_run_again_the_weights_are_equal_to_the_bit(tmp_path: Path, long_unbroken: Path) -> None:
    root = project(tmp_path, training=LONG)
    kill_at_first_checkpoint(train_command(root), root)
    assert not (root / "artifacts/meta_train/model").exists()
    done = train_command(root)
    output, _ = done.communicate(timeout=120)
    assert done.returncode == 0, output
    assert "resuming from the checkpoint of step" in output
    assert_same_weights(root, long_unbroken)


def test_a_changed_setting_does_not_resume_from_the_checkpoints_of_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = project(tmp_path)
    meta_train.run(load_params(root / "params.yaml"), Workspace(root))
    changed = (root / "params.yaml").read_text().replace("seed: 1", "seed: 2")
    (root / "params.yaml").write_text(changed)
    capsys.readouterr()
    meta_train.run(load_params(root / "params.yaml"), Workspace(root))
    assert "resuming" not in capsys.readouterr().out


def test_killed_in_two_processes_no_worker_goes_on(tmp_path: Path) -> None:
    root = project(tmp_path, n_processes=2, training={"n_steps": 100_000, "validate_every": 100_000, "patience": 1})
    process = train_command(root)
    wait_for_checkpoint(root)
    workers = [pid for pid in descendants(process.pid) if "meta_train" in command_line(pid)]
    assert len(workers) >= 2
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    for pid in workers:
        wait_until_gone(pid)


def test_training_goes_on_after_a_worker_was_killed(tmp_path: Path, unbroken: Path) -> None:
    root = project(tmp_path, n_processes=2, training=LONG)
    process = train_command(root)
    wait_for_checkpoint(root)
    os.kill(workers_of(process)[-1], signal.SIGKILL)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert "resuming from the checkpoint of step" in output
    assert json.loads((root / "artifacts/meta_train/metrics.json").read_text())["steps"] == 400


def test_a_loss_that_is_not_finite_is_one_line_also_from_two_processes(tmp_path: Path) -> None:
    settings = {"outer_lr": 1e30, "n_steps": 50, "validate_every": 50}
    root = project(tmp_path, n_processes=2, training=settings)
    process = train_command(root)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1, output
    assert "error: step" in output and "need finite numbers" in output
    assert "Traceback" not in output
    assert not (root / "artifacts/meta_train").exists()


def test_a_setting_that_the_learner_cannot_take_is_refused_before_training(tmp_path: Path) -> None:
    root = project(tmp_path)
    text = (root / "params.yaml").read_text().replace("name: protonet", "name: maml")
    (root / "params.yaml").write_text(text.replace("- k_shot: 1\n      n_way: 3", "- k_shot: 1\n      n_way: 5"))
    with pytest.raises(EpisodeError, match="meta_test asks for 5-way 1-shot; this learner, trained 3-way"):
        meta_train.run(load_params(root / "params.yaml"), Workspace(root))


def test_pools_of_another_state_of_the_data_are_refused(tmp_path: Path) -> None:
    root = project(tmp_path)
    shutil.rmtree(root / "data/tiny")
    tiny_dataset(n_classes=5, n_images=7).write(root / "data/tiny")
    with pytest.raises(DataError, match="the task pools were drawn from data .*next: kshot validate, kshot pool"):
        meta_train.run(load_params(root / "params.yaml"), Workspace(root))


def test_training_needs_neither_pandas_nor_scipy_nor_matplotlib(tmp_path: Path) -> None:
    """Together they would be a tenth of a training process's memory."""
    tiny_dataset().write(tmp_path / "tiny")
    program = """
import sys
from pathlib import Path
import kshot.stages.meta_train
from kshot.data.packed import PackedDataset
PackedDataset.open(Path("tiny")).class_table("meta_train")
print({"pandas", "scipy", "matplotlib", "mlflow"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_training_without_kernels_is_asked_for_by_params_and_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = project(tmp_path, n_processes=1)

    def device(native_kernels: bool) -> str:
        params = load_params(root / "params.yaml")
        process = replace(params.process, native_kernels=native_kernels)
        meta_train.run(replace(params, process=process), Workspace(root))
        return str(json.loads((root / "artifacts/meta_train/metrics.json").read_text())["device"])

    assert device(False) == "cpu"
    if shutil.which("c++"):
        build_native()
        assert re.fullmatch("cpu with native kernels by .+", device(True))
    monkeypatch.setenv("KSHOT_WITHOUT_KERNELS", "1")
    assert device(True) == "cpu"


def test_bfloat16_where_no_instruction_carries_it_is_refused_before_training_unless_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # read anew by kshot; oneDNN itself may have read it before
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    root = project(tmp_path, n_processes=1, device="cpu", training={"precision": "bfloat16"})
    params = load_params(root / "params.yaml")
    with pytest.raises(ConfigError, match="next: set precision to float32, or process.force_precision to true"):
        meta_train.run(params, Workspace(root))
    assert not (root / "artifacts/meta_train").exists()
    meta_train.run(replace(params, process=replace(params.process, force_precision=True)), Workspace(root))
    assert "bfloat16: no instructions of this processor carry it" in capsys.readouterr().out
    assert weights(root)
