from pathlib import Path

import pytest
import torch

from bench import gpu
from bench.drivers.kshot_steps import Data, training_job
from bench.measure import Request
from bench.workloads import WORKLOADS
from kshot.adam import Adam
from kshot.datasets import PackedDataset
from kshot.distributed import Workers
from kshot.episode_loader import ResidentItems
from kshot.training import TrainingJob
from tests.tiny_dataset import tiny_dataset

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_dataset(n_classes=6, n_images=16).write(tmp_path / "tiny")


def job(folder: Path) -> TrainingJob:
    workload, dataset = WORKLOADS["anil-1step"], PackedDataset.open(folder)
    data = Data(item=dataset.item, table=dataset.class_table("meta_train"), gather=ResidentItems(dataset, CPU))
    request = Request(workload=workload, root_pid=0, width=4)
    return training_job(workload, workload.shapes[0], data, request, Workers(), CPU)


def test_a_replayed_gradient_trains_as_the_step_does(folder: Path) -> None:
    """On the CPU nothing is captured, but drawn, copied to where a graph would read, and updated."""
    plain, replayed = job(folder), job(folder)
    eager = gpu.eager(plain, Adam(plain.learner.parameters()))
    graphed = gpu.GraphedStep(replayed, Adam(replayed.learner.parameters()), capture=lambda compute: compute)
    for step in range(3):
        eager(step)
        graphed(step)
    for one, other in zip(plain.learner.parameters(), replayed.learner.parameters(), strict=True):
        assert torch.equal(one, other)


def test_each_way_is_a_column_and_one_that_fails_says_why(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(job: TrainingJob, optimizer: Adam) -> gpu.Step:
        raise RuntimeError("no graph today\nand a trace")

    monkeypatch.setitem(gpu.WAYS, "graph", ("float32", fails))
    command = ["--device", "cpu", "--data", str(folder), "--seconds", "0", "--only", "protonet-5w1s15q"]
    assert gpu.main([*command, "--ways", "float32", "graph"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "protonet-5w1s15q" in line)
    _, _, speed, failure, _ = map(str.strip, row.split("│"))
    assert float(speed.replace(",", "")) > 0
    assert failure == "RuntimeError: no graph today"


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_a_gpu_it_says_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "found no GPU" in capsys.readouterr().err
