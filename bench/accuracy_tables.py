"""The sections of docs/results.md on learners and on options of training."""

from collections.abc import Iterator, Mapping

import numpy as np

from bench.results import Accuracies, AccuracyRow
from bench.tables import machine_line, markdown_table
from kshot.algorithms.answering import NON_TRANSDUCTIVE
from kshot.evaluation.intervals import Interval, mean_interval, paired_difference

_TITLES = {"learners": "## Learners on the glyphs", "options": "## Options of training on the glyphs"}
_NOTES = {
    "learners": (
        "Conv4-64 from scratch on the embedded glyphs, seed 1; classes of meta_test are never seen before. Budgets "
        "are small and the same within a family (`bench/accuracy_rows.py`), so the table says what a learner gives in "
        "about so many minutes of CPU, not what it can reach. Learners with an inner loop train on 5-way episodes and "
        "are not asked for 20 classes. A transductive score has seen all queries of its episode together, and stands "
        "apart."
    ),
    "options": (
        "Prototypical Networks of the preset demo with one change each, seed 1. The last column is the mean change "
        "over all settings with its 95% interval, episode by episode, against the first row; it covers the draw of "
        "episodes and not that of the seed, so a change below half a point says little."
    ),
}
_COLUMNS = {"5w1s": "5-way 1-shot", "5w5s": "5-way 5-shot", "20w1s": "20-way 1-shot", "20w5s": "20-way 5-shot"}


def accuracy_section(done: Accuracies) -> str:
    is_options = done.of == "options"
    titles = [done.of.capitalize()[:-1], *([] if is_options else ["mode"]), *_COLUMNS.values(), "CPU minutes"]
    return "\n\n".join(
        [
            _TITLES[done.of],
            machine_line(done.machine),
            f"```\npython -m bench.accuracy {done.of}\n```",
            _NOTES[done.of],
            markdown_table([*titles, *(["change"] if is_options else [])], list(_rows(done, is_options=is_options))),
        ]
    )


def _rows(done: Accuracies, *, is_options: bool) -> Iterator[list[str]]:
    served = [row for row in done.rows if row.mode == NON_TRANSDUCTIVE]
    for row in served if is_options else done.rows:
        cells = [row.title, *([] if is_options else [row.mode]), *_cells(row), f"{row.minutes:.1f}"]
        yield [*cells, *([_change(row, served[0])] if is_options else [])]


def _cells(row: AccuracyRow) -> Iterator[str]:
    of_row = _arrays(row)
    yield from (_percent(mean_interval(of_row[name])) if name in of_row else "" for name in _COLUMNS)


def _change(row: AccuracyRow, first: AccuracyRow) -> str:
    return "" if row is first else _percent(paired_difference(_arrays(row), _arrays(first)), sign="+")


def _arrays(row: AccuracyRow) -> Mapping[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    return {name: np.asarray(values, dtype=np.float64) for name, values in row.accuracy.items()}


def _percent(interval: Interval, sign: str = "") -> str:
    return f"{100 * interval.mean:{sign}.2f} ± {100 * interval.half_width:.2f}"
