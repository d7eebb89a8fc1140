"""The page of a watched gallery, and the same as JSON."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kshot.monitoring.drift import N_PERMUTATIONS, Sample
from kshot.monitoring.monitor import REFERENCE_WORDS, Watched
from kshot.pages.page import figure_uri, render
from kshot.runtime.files import json_bytes

PAGE, RECORD = "monitor.html", "monitor.json"


def write_page(folder: Path, found: Watched, reference: Sample, window: Sample) -> Path:
    """Write monitor.html and monitor.json into `folder`; the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_bytes(json_bytes(found.as_json()))
    page = render(
        "monitor.html.j2",
        found=found,
        reference=REFERENCE_WORDS[found.reference],
        n_permutations=N_PERMUTATIONS,
        figures={"answers": figure_uri(_distributions(reference, window))},
    )
    (folder / PAGE).write_text(page, encoding="utf-8")
    return folder / PAGE


def _distributions(reference: Sample, window: Sample) -> Figure:

    figure = Figure(figsize=(9, 3), layout="constrained")
    pairs = (
        ("probability", reference.probability, window.probability),
        ("score: how well it is known", reference.known, window.known),
    )
    for axes, (name, before, now) in zip(figure.subplots(1, 2), pairs, strict=True):
        for label, values in (("reference", before), ("last answers", now)):
            axes.step(*_shares(values), where="post", label=label)
        axes.set_xlabel(name)
        axes.set_ylabel("share of answers below")
        axes.legend()
    return figure


def _shares(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    ordered = np.sort(values)
    return ordered, np.arange(1, len(ordered) + 1) / len(ordered)
