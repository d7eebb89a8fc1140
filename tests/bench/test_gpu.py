from functools import partial
from pathlib import Path

import pytest
import torch

from bench import gpu
from kshot.training.loop import TrainingJob
from kshot.training.optimizers import Optimizer
from tests.tiny_dataset import tiny_dataset

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_dataset(n_classes=6, n_images=16).write(tmp_path / "tiny")


def trained(folder: Path, way: gpu.Way) -> list[torch.Tensor]:
    """Losses and norms of three steps."""
    job = gpu._job("anil-1step", way, folder, CPU)
    step = way.make(job, job.new_optimizer())
    return [step(number) for number in range(3)]


def test_every_way_trains_as_the_step_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU nothing is pinned or captured, but drawn, copied to where a graph would read, and updated."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    graphed = partial(gpu.GraphedStep, capture=lambda compute: compute)
    expected = trained(folder, gpu.Way())
    for way in (gpu.Way(draws_on_host=True), gpu.Way(make=graphed)):
        assert all(map(torch.equal, trained(folder, way), expected))


def test_a_way_that_fails_is_told_and_leaves_the_others(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(job: TrainingJob, optimizer: Optimizer) -> gpu.Step:
        raise RuntimeError("no graph today")

    monkeypatch.setitem(gpu.WAYS, "graph", gpu.Way(make=fails))
    monkeypatch.setattr(gpu, "_QUEUED", 1)
    command = ["--device", "cpu", "--data", str(folder), "--seconds", "0", "--only", "protonet-5w1s15q"]
    assert gpu.main([*command, "--ways", "graph", "float32"]) == 1
    printed = capsys.readouterr()
    row = next(line for line in printed.out.splitlines() if "protonet-5w1s15q" in line)
    _, _, failure, speed, _ = map(str.strip, row.split("│"))
    assert failure == "failed"
    assert float(speed.replace(",", "")) > 0
    assert "no graph today" in printed.err


def test_without_a_gpu_it_says_what_is_needed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "found no GPU" in capsys.readouterr().err
