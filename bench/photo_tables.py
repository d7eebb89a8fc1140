"""The section of the report on photos: how fast they are read, and how long each step takes on them."""

from collections.abc import Callable, Sequence
from statistics import median

from bench.results import DISTURBED_SHARE, PhotoReading, Photos, PipelineStep
from bench.tables import machine_line, markdown_table, rounded

TITLE = "## Reading photos"

_READERS = {
    "kshot": "kshot ingest",
    "loader": "ImageFolder, DataLoader",
    "pillow": "Pillow decodes",
    "torchvision": "torchvision decodes",
}
_GOALS = {"loader": "1.5x", "pillow": "0.8x"}

Cost = Callable[[PhotoReading], float]


def photo_section(photos: Photos) -> str:
    sizes = sorted({one.size_px for one in photos.readings})
    rows = [row for size_px in sizes for row in _reading_rows(photos, size_px)]
    titles = ["", *_READERS.values(), *(f"kshot to {_READERS[rival]}" for rival in _GOALS)]
    return "\n\n".join(
        [
            TITLE,
            f"{machine_line(photos.machine)} {photos.n_photos:,} drawn JPEG photos of 500x375 pixels, "
            f"{photos.mean_bytes / 1000:.0f} KB each.",
            f"```\n{photos.command}\n```",
            *([_READING_NOTE, markdown_table(titles, rows)] if rows else []),
            *([_STEPS_NOTE, _steps_table(photos.steps)] if photos.steps else []),
        ]
    )


_READING_NOTE = (
    "Each reads every file once on all cores; the files lie in the cache of the system. `kshot ingest` checks, "
    "decodes, crops, resizes, hashes and writes a dataset to the disk. Beside it stand torchvision's ImageFolder with "
    "Resize, CenterCrop and ToTensor through a DataLoader with a worker for each core, which a training would pay "
    "again in each epoch, and the decoding alone, in as many processes, without a resize. Libraries are imported "
    "before, except in the rows `whole process`. The value is the median over the rounds. The last two columns say how "
    "many times as fast kshot is, or as cheap, taken within a round, with the lowest and the highest; the goals are "
    f"{_GOALS['loader']} and {_GOALS['pillow']}. `*` marks a number that other processes disturbed in some round; CPU "
    "time suffers least from them."
)
_STEPS_NOTE = (
    "From the folder to a scored model, as `make photos` does it, with settings of `presets/photos.yaml`: each step a "
    "whole process, without DVC, Prefect and the registry. `meta_train` embeds meta_val, `evaluate` meta_test."
)


def _reading_rows(photos: Photos, size_px: int) -> list[list[str]]:
    def row(title: str, cost: Cost, shown: Callable[[float], float]) -> list[str]:
        return [
            f"{size_px} px, {title}",
            *(_value(photos, reader, size_px, cost, shown) for reader in _READERS),
            *(_times(photos, rival, size_px, cost) for rival in _GOALS),
        ]

    n_photos = photos.n_photos
    return [
        row("photos/s", lambda one: one.seconds, lambda seconds: n_photos / seconds),
        row("CPU ms per photo", lambda one: one.cpu_s, lambda seconds: 1000 * seconds / n_photos),
        row("whole process, s", lambda one: one.process_s, lambda seconds: seconds),
    ]


def _steps_table(steps: Sequence[PipelineStep]) -> str:
    together = PipelineStep(
        name="all",
        seconds=sum(step.seconds for step in steps),
        cpu_s=sum(step.cpu_s for step in steps),
        others_share=max(step.others_share for step in steps),
    )
    rows = [
        [step.name, rounded(step.seconds) + "*" * (step.others_share > DISTURBED_SHARE), rounded(step.cpu_s)]
        for step in (*steps, together)
    ]
    return markdown_table(["step", "seconds", "CPU seconds"], rows)


def _value(photos: Photos, reader: str, size_px: int, cost: Cost, shown: Callable[[float], float]) -> str:
    readings = photos.of(reader, size_px).values()
    return rounded(median(shown(cost(one)) for one in readings)) + _mark(photos, size_px, reader) if readings else ""


def _times(photos: Photos, rival: str, size_px: int, cost: Cost) -> str:
    ratio = photos.ratio(size_px, rival, cost)
    if ratio is None:
        return ""
    return f"{ratio.median:.2f}x{_mark(photos, size_px, 'kshot', rival)} ({ratio.low:.2f}..{ratio.high:.2f})"


def _mark(photos: Photos, size_px: int, *readers: str) -> str:
    readings = [one for reader in readers for one in photos.of(reader, size_px).values()]
    return "*" if any(one.others_share > DISTURBED_SHARE for one in readings) else ""
