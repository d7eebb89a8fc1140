"""python -m bench.accuracy learners|options: what each gives on the embedded glyphs, in docs/results.md.

Every row is a training and an evaluation by the commands that users run. A row is kept in .kshot/bench when it is done,
and a run that was stopped goes on after it.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from bench import report
from bench.accuracy_rows import LEARNERS, OPTIONS, Row
from bench.accuracy_tables import accuracy_section
from bench.project import CommandError, kshot, prepare_project, write_params
from bench.results import Accuracies, AccuracyRow, load, save
from bench.run import describe_machine
from kshot.evaluation.scorecard import EPISODES
from kshot.yaml_file import read_yaml

ROWS: Mapping[str, tuple[Row, ...]] = {"learners": LEARNERS, "options": OPTIONS}

_PAGE = Path("docs", "results.md")
_EVALUATED = Path("artifacts", "evaluate", EPISODES)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    kept = report.FOLDER / f"accuracy-{options.of}.json"
    done = load(Accuracies, kept) or Accuracies(of=options.of, machine=describe_machine(), rows=())
    try:
        for row in measure([row for row in ROWS[options.of] if row.title not in done.titles]):
            done = replace(done, rows=(*done.rows, *row))
            save(done, kept)
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report.write_section(accuracy_section(done), _PAGE)
    return 0


def measure(rows: Sequence[Row]) -> Iterator[tuple[AccuracyRow, ...]]:
    """Of each row its modes, in one project, so that the same pools and trainings are not made twice."""
    with TemporaryDirectory(prefix="kshot-bench-") as folder:
        project = Path(folder, "project")
        prepare_project(project)
        kshot(project, "ingest", "glyphs")
        preset = read_yaml(project / "presets" / "demo.yaml")
        for row in rows:
            write_params(project, params_of(row, preset))
            kshot(project, "stage", "validate")
            kshot(project, "stage", "task_pool")
            trained = [kshot(project, "stage", stage) for stage in ("pretrain", "meta_train")]
            kshot(project, "stage", "evaluate")
            minutes = sum(stage.cpu_s for stage in trained) / 60
            yield tuple(_modes(row.title, minutes, pd.read_parquet(project / _EVALUATED)))
            print(f"{row.title}: {minutes:.1f} minutes of CPU", flush=True)


def params_of(row: Row, preset: Mapping[str, Any]) -> dict[str, Any]:
    """The preset without its baseline of ordinary training and with the settings and changes of the row."""
    of_all = {"pretrain": {"name": "none"}, "task_pool": {"meta_test": {"settings": list(row.settings)}}}
    return _over(_over(preset, of_all), row.changes)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Sections are laid over sections; anything with a name, such as an algorithm, is replaced as a whole."""
    merged = dict(below)
    for name, value in above.items():
        old = below.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and "name" not in value:
            value = _over(old, value)
        merged[name] = value
    return merged


def _modes(title: str, minutes: float, episodes: pd.DataFrame) -> Iterator[AccuracyRow]:
    for mode, of_mode in episodes.groupby("mode", sort=False):
        ordered = of_mode.sort_values("episode")
        accuracy = {str(setting): rows["accuracy"].tolist() for setting, rows in ordered.groupby("setting", sort=False)}
        yield AccuracyRow(title=title, mode=str(mode), minutes=minutes, accuracy=accuracy)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy", description=__doc__)
    parser.add_argument("of", choices=ROWS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
