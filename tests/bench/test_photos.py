"""A dozen photos: what is measured and where it is written, and never how long it took."""

from pathlib import Path

import pytest
from PIL import Image

from bench import photos, report
from bench.photo_files import jpeg, write_photos
from bench.photo_readers import READERS
from bench.photo_tables import photo_section
from bench.project import CommandError, prepare_project
from bench.results import PhotoReading, Photos, PipelineStep, load
from kshot.data.packed import PackedDataset
from kshot.stages import STAGES
from tests.bench.fake_results import MACHINE, FakeRun


def reading(reader: str, number: int, seconds: float, *, others_share: float = 0) -> PhotoReading:
    return PhotoReading(
        round=number, reader=reader, size_px=84, seconds=seconds, cpu_s=2 * seconds, process_s=seconds + 1,
        others_share=others_share,
    )  # fmt: skip


@pytest.fixture
def measured() -> Photos:
    """Three rounds in which kshot reads 100 photos in 1 s, the loader in 1, 2 and 3 and Pillow in half."""
    readings = []
    for number in range(3):
        readings += [reading("kshot", number, 1), reading("loader", number, 1 + number)]
        readings.append(reading("pillow", number, 0.5, others_share=0.5))
    steps = (
        PipelineStep(name="ingest", seconds=2, cpu_s=3, others_share=0.5),
        PipelineStep(name="evaluate", seconds=20, cpu_s=30, others_share=0),
    )
    return Photos(
        command="python -m bench.photos", machine=MACHINE, n_photos=100, mean_bytes=60_000, readings=tuple(readings),
        steps=steps,
    )  # fmt: skip


def line(text: str, start: str) -> str:
    return next(row for row in text.splitlines() if row.startswith(f"| {start} |"))


def test_the_photos_are_the_same_each_time_and_as_large_as_a_cameras(tmp_path: Path) -> None:
    assert jpeg(5, 1) == jpeg(5, 1)
    n_bytes = write_photos(tmp_path, n_photos=6, per_class=3)
    files = sorted(tmp_path.glob("*/*.jpg"))
    assert [file.parent.name for file in files] == 3 * ["class-0000"] + 3 * ["class-0001"]
    assert sum(file.stat().st_size for file in files) == n_bytes
    assert len({file.read_bytes() for file in files}) == 6
    for file in files:
        assert 40_000 < file.stat().st_size < 80_000
        with Image.open(file) as image:
            assert sorted(image.size) == [375, 500]


def test_every_reader_reads_every_photo_in_each_round_and_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert photos.main(["--photos", "12", "--per-class", "4", "--rounds", "1", "--only", "reading"]) == 0
    printed = capsys.readouterr().out
    for size_px in photos.SIZES_PX:
        cells = line(printed, f"{size_px} px, photos/s").split(" | ")[1:]
        assert len(cells) == len(READERS) + 2
        assert all(float(cell.split("x")[0].rstrip("* |").replace(",", "")) > 0 for cell in cells)
    assert "CPU seconds" not in printed
    assert list(tmp_path.iterdir()) == []


def test_the_steps_are_run_in_a_project_with_a_source_of_its_own(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", n_photos=12, per_class=4)
    prepare_project(tmp_path / "project")
    (step,) = photos.run_steps(tmp_path / "project", tmp_path / "photos", ["ingest"])
    assert step.name == "ingest"
    dataset = PackedDataset.open(tmp_path / "project" / "data" / "photos")
    assert (dataset.n_stored, len(dataset.splits.by_class())) == (12, 3)
    with pytest.raises(CommandError, match="kshot stage validate: error: photos fails .* checks"):
        list(photos.run_steps(tmp_path / "project", tmp_path / "photos", ["validate"]))


def test_the_steps_after_the_ingest_are_stages() -> None:
    first, *stages = photos.STEPS
    assert first == "ingest"
    assert STAGES.keys() >= set(stages)


def test_a_ratio_is_taken_within_a_round_and_marked_where_others_disturbed_it(measured: Photos) -> None:
    text = photo_section(measured)
    assert line(text, "84 px, photos/s") == (
        "| 84 px, photos/s | 100 | 50 | 200* |  | 2.00x (1.00..3.00) | 0.50x* (0.50..0.50) |"
    )
    assert line(text, "84 px, CPU ms per photo").startswith("| 84 px, CPU ms per photo | 20 | 40 | 10* |")
    assert line(text, "84 px, whole process, s").startswith("| 84 px, whole process, s | 2 | 3 | 1.5* |")
    assert [line(text, step) for step in ("ingest", "evaluate", "all")] == [
        "| ingest | 2* | 3 |",
        "| evaluate | 20 | 30 |",
        "| all | 22* | 33 |",
    ]
    for part in ("Abacus 3000", "2026-01-02", "python -m bench.photos", "100 drawn JPEG photos", "60 KB"):
        assert part in text


def test_the_section_takes_the_place_of_the_old_one_and_leaves_the_rest_of_the_page(
    measured: Photos, tmp_path: Path
) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text("# Benchmarks\n\n## Reading photos\n\nold\n\n### Old\n\n## Growth\n\nkept\n")
    for _ in range(2):
        report.write_section(photo_section(measured), tmp_path / "benchmarks.md")
        assert page.read_text() == f"# Benchmarks\n\n{photo_section(measured)}\n\n## Growth\n\nkept\n"
    page.write_text("# Benchmarks\n\n## Growth\n\nkept\n")
    for _ in range(2):
        report.write_section(photo_section(measured), tmp_path / "benchmarks.md")
        assert page.read_text() == f"# Benchmarks\n\n## Growth\n\nkept\n\n{photo_section(measured)}\n"


def test_the_whole_report_has_the_photos_that_were_measured_last(
    measured: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(photos, "measure", lambda options: measured)
    assert photos.main([]) == 0
    assert load(Photos, report.PHOTOS) == measured
    report.write([FakeRun().results()])
    assert photo_section(measured) in (tmp_path / "docs" / "benchmarks.md").read_text()
