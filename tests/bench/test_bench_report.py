from pathlib import Path

import pytest

from bench import report
from bench.results import Installation, save
from tests.bench.fake_results import FakeRun, fake_growth, measurement


@pytest.fixture
def run() -> FakeRun:
    """Three rounds in which kshot takes 10 ms per episode and learn2learn 20, 30 and 40."""
    made = FakeRun()
    for number in range(3):
        made.add_parts(number, "floor-conv", "floor", {"80": 0.005, "360": 0.02, "400": 0.03})
        made.add(number, "protonet-5w1s15q", "kshot", 0.010)
        made.add(number, "protonet-5w1s15q", "kshot-torch", 0.020)
        made.add(number, "protonet-5w1s15q", "kshot-bf16", 0.005)
        made.add(number, "protonet-5w1s15q", "learn2learn", 0.010 * (2 + number))
        made.add(number, "memory", "kshot", 1, peak_rss_mb=500)
        made.add(number, "memory", "learn2learn", 1, peak_rss_mb=1000, others_share=0.5)
    made.installations.append(
        Installation(peer="learn2learn", version="0.2.0", torch="torch==2.14.1", plain_error="no C | file", recipe="C")
    )
    return made


def line(text: str, start: str) -> str:
    return next(row for row in text.splitlines() if row.startswith(f"| {start}"))


def test_a_ratio_stands_with_its_extremes_its_floor_and_its_goal(run: FakeRun) -> None:
    row = line(report.tables([run.results()]), "protonet-5w1s15q")
    assert row == (
        "| protonet-5w1s15q | Abacus 3000, AVX-512 | 3.00x (2.00..4.00) | learn2learn | 3.00x (2.00..4.00) | "
        "1.50x (1.00..2.00) | 6.00x (4.00..8.00) | 50% | 2.0x, 60% |"
    )


def test_numbers_that_others_disturbed_are_marked(run: FakeRun) -> None:
    text = report.tables([run.results()])
    assert "2.00x* (2.00..2.00)" in line(text, "memory")
    assert line(text, "peak") == "| peak | 500 | 1,000* |"


def test_a_peer_that_does_not_install_or_run_is_there_with_its_error(run: FakeRun) -> None:
    run.installations.append(Installation(peer="higher", version="0.2.1", torch="", error="no wheel"))
    run.fail(0, "protonet-5w1s15q", "learn2learn", "ValueError: betas")
    run.add(0, "sampling", "learn2learn", 1, notes=("shim",))
    text = report.page([run.results()], None)
    assert line(text, "higher 0.2.1") == "| higher 0.2.1 | `no wheel` |  | nothing |  |"
    assert line(text, "learn2learn 0.2.0") == (
        "| learn2learn 0.2.0 | `no C / file` | C | 3 workloads | `protonet-5w1s15q: ValueError: betas`; `shim` |"
    )


def test_the_page_names_the_machine_the_command_and_the_day(run: FakeRun) -> None:
    text = report.page([run.results()], None)
    for part in ("Abacus 3000", "2 cores", "8 GiB", "torch 2.14.1", "2026-01-02", "python -m bench.run", "3 rounds"):
        assert part in text
    assert "Growth" not in text


def test_the_files_are_made_again_from_the_results_alone(run: FakeRun, tmp_path: Path) -> None:
    save(fake_growth(measurement(0.5)), tmp_path / "growth.json")
    report.write([run.results()], docs=tmp_path / "docs", folder=tmp_path)
    assert {path.name for path in (tmp_path / "docs").iterdir()} == {"benchmarks.md", "benchmarks.png", "growth.png"}
    assert "| sampling | 1,000,000 | 1,000 | 2 |" in (tmp_path / "docs" / "benchmarks.md").read_text()


def test_the_runs_with_each_set_of_instructions_stand_side_by_side(run: FakeRun, tmp_path: Path) -> None:
    slower = FakeRun()
    slower.add(0, "protonet-5w1s15q", "kshot", 0.010)
    slower.add(0, "protonet-5w1s15q", "learn2learn", 0.015, notes=("shim",))
    for made in (slower.results("avx2"), run.results("avx512")):
        save(made, report.results_file(made.instructions, tmp_path))
    runs = report.saved_results(tmp_path)
    report.write(runs, docs=tmp_path / "docs", folder=tmp_path / "none")
    text = (tmp_path / "docs" / "benchmarks.md").read_text()
    rows = [row for row in text.splitlines() if row.startswith("| protonet-5w1s15q | Abacus")]
    assert [row.split(" | ")[1:3] for row in rows] == [
        ["Abacus 3000, AVX-512", "3.00x (2.00..4.00)"],
        ["Abacus 3000, AVX2", "1.50x (1.50..1.50)"],
    ]
    for part in ("AVX-512 instructions, 3 rounds", "AVX2 instructions, 3 rounds", "Abacus 3000, AVX2:\n\n| "):
        assert part in text
    assert line(text, "learn2learn 0.2.0").endswith("| 2 workloads | `shim` |")
    pictures = {path.name for path in (tmp_path / "docs").glob("*.png")}
    assert pictures == {"benchmarks.png", "benchmarks-avx2.png"}
    assert all(f"]({name})" in text for name in pictures)


def test_a_run_replaces_the_one_with_the_same_instructions_alone(run: FakeRun, tmp_path: Path) -> None:
    first, second = run.results("avx2"), FakeRun().results("avx2")
    for made in (first, run.results("default"), second):
        save(made, report.results_file(made.instructions, tmp_path))
    assert report.saved_results(tmp_path) == [second, run.results("default")]


def test_a_run_without_any_peer_still_has_its_tables() -> None:
    run = FakeRun()
    run.add(0, "anil-1step", "kshot", 0.004)
    assert line(report.tables([run.results()]), "anil-1step | 2") == "| anil-1step | 250 |"
    assert report.tables([FakeRun().results()]) == ""
