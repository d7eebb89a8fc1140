import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.drivers import DRIVERS, floor_steps, kshot_steps
from bench.measure import CpuClock, Measurement, Noise, Part, Request, measure
from bench.plain import Conv4, numpy_episodes
from bench.processes import DriverError, error_line, quietest, run_command, run_driver
from bench.workloads import WORKLOADS, Shape
from tests.bench.fake_results import measurement
from tests.tiny_dataset import tiny_dataset

KSHOT_WORKLOADS = [name for name in WORKLOADS if DRIVERS["kshot"].does(WORKLOADS[name])]


def request(workload: str = "protonet-5w1s15q", **changes: object) -> Request:
    small = replace(WORKLOADS[workload], episodes=min(2, WORKLOADS[workload].episodes))
    made = Request(workload=small, root_pid=os.getpid(), seconds=0, width=2, noise=Noise(n_classes=60))
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("workload", KSHOT_WORKLOADS)
def test_kshot_takes_a_step_of_every_workload(workload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kshot_steps, "SCORED_AT_ONCE", {"protonet": 2, "maml": 2})
    parts = kshot_steps.prepare(request(workload))
    assert [part.name for part in parts] == [str(shape) for shape in WORKLOADS[workload].shapes]
    for part in parts:
        part.step()


def test_kshot_takes_a_step_in_bfloat16() -> None:
    kshot_steps.prepare(request("maml-1step", precision="bfloat16"))[0].step()


def test_kshot_is_not_measured_in_bfloat16_where_it_would_refuse_to_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    with pytest.raises(DriverError, match=r"^error: meta_train.training.precision is bfloat16; found .*; need "):
        run_driver(DRIVERS["kshot-bf16"], request("maml-1step", precision="bfloat16"))


def test_kshot_draws_its_episodes_from_the_dataset(tmp_path: Path) -> None:
    folder = tiny_dataset(n_classes=5, n_images=16).write(tmp_path / "tiny")
    episodes = kshot_steps.prepare(request("sampling", noise=None, dataset=str(folder)))[0].step()
    assert episodes.query_x.shape == (2, 75, 1, 16, 16)  # type: ignore[attr-defined]


@pytest.mark.parametrize("floor", ["floor-plain", "floor-conv"])
def test_the_floors_take_a_step_for_every_number_of_images(floor: str) -> None:
    parts = floor_steps.prepare(request(floor))
    assert [part.name for part in parts] == ["80", "360", "400"]
    parts[0].step()


def test_the_episodes_of_the_peers_hold_support_and_query_of_the_same_classes(tmp_path: Path) -> None:
    images = np.broadcast_to(np.arange(6, dtype=np.uint8)[:, None, None, None], (6, 20, 28, 28))
    np.save(tmp_path / "images.npy", images)
    batches = numpy_episodes(str(tmp_path / "images.npy"), Shape(n_way=3, k_shot=1), 2)
    support_x, support_y, query_x, query_y = next(batches)
    assert support_x.shape == (2, 3, 1, 28, 28)
    assert query_x.shape == (2, 45, 1, 28, 28)
    class_of_label = dict(zip(support_y[1].tolist(), support_x[1, :, 0, 0, 0].tolist(), strict=True))
    assert [class_of_label[label] for label in query_y[1].tolist()] == query_x[1, :, 0, 0, 0].tolist()
    assert Conv4(2, n_way=3)(support_x[0]).shape == (3, 3)


def test_a_request_arrives_as_it_was_sent() -> None:
    sent = request("evaluate-protonet", steps=3)
    assert Request.from_json(sent.to_json()) == sent


def test_a_measurement_times_every_part_after_a_warm_up() -> None:
    calls = {"a": 0, "b": 0}

    def part(name: str) -> Part:
        return Part(name=name, step=lambda: calls.update({name: calls[name] + 1}), episodes=4)

    made = measure([part("a"), part("b")], request(steps=5))
    assert [(timing.name, timing.steps, timing.episodes) for timing in made.timings] == [("a", 5, 4), ("b", 5, 4)]
    assert calls == {"a": 7, "b": 7}
    assert 0 < made.idle_rss_mb <= made.peak_rss_mb


def test_the_clock_counts_the_work_of_others_and_not_that_of_the_tree() -> None:
    spin = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    with subprocess.Popen(["sleep", "60"]) as somebody_else:
        of_the_tree, of_others = CpuClock(os.getpid()), CpuClock(somebody_else.pid)
        subprocess.run([sys.executable, "-c", spin], check=True)
        work_s = of_others.others_and_wall()[0] - of_the_tree.others_and_wall()[0]
        somebody_else.kill()
    assert work_s > 0.2  # what this tree used, seen as another's and as its own


DRIVER = "from bench.measure import *; serve(lambda r: [Part(name='x', step=int, episodes=r.workload.episodes)])"


def test_a_driver_is_asked_and_answers_through_its_process() -> None:
    made = run_command([sys.executable, "-c", DRIVER], request("maml-1step", steps=3))
    assert (made.timings[0].steps, made.timings[0].episodes) == (3, 2)


def test_a_driver_that_fails_is_reported_by_its_error_line() -> None:
    with pytest.raises(DriverError, match="^ModuleNotFoundError: No module named 'no_such_library'$"):
        run_command([sys.executable, "-c", "import no_such_library"], request())


def test_an_error_line_names_no_address_and_no_folder() -> None:
    stderr = "warning: first\nError: https://index.example/simple/x: no /tmp/build/x.so, need a/b or 1/2\n  hint: none"
    assert error_line(stderr) == "Error: URL no x.so, need a/b or 1/2"


def test_a_peer_that_is_not_there_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DriverError, match="not installed; next: python -m bench.make_peers"):
        run_driver(DRIVERS["higher"], request())


@pytest.mark.parametrize(
    ("shares", "kept", "asked"), [([0.01], 0.01, 1), ([0.3, 0.02, 0], 0.02, 2), ([0.3, 0.2, 0.5, 0.4], 0.2, 4)]
)
def test_a_disturbed_measurement_is_repeated_and_the_quietest_kept(
    shares: list[float], kept: float, asked: int
) -> None:
    made: list[Measurement] = []

    def next_one() -> Measurement:
        made.append(measurement(1, others_share=shares[len(made)]))
        return made[-1]

    assert quietest(next_one).others_share == kept
    assert len(made) == asked


def test_the_images_of_the_convolution_floor_are_channels_last_by_their_strides() -> None:
    images = floor_steps._channels_last(2, 1, 28)
    assert images.stride() == (784, 1, 28, 1)
    assert images.is_contiguous(memory_format=torch.channels_last)
