"""The result of a run of the train flow, as a table on the terminal and in Markdown."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from kshot.errors import StageError
from kshot.evaluation.scorecard import lead_in
from kshot.printing import escape_missing_letters, in_short_lines, unstyled
from kshot.project.dvc import StageRun
from kshot.workspace import Workspace

_COLUMNS_OF_A_LOG = 120


@dataclass(frozen=True, kw_only=True)
class Score:
    """Accuracy on held-out classes with the half width of its 95% interval, both fractions."""

    accuracy: float
    ci95: float

    def __str__(self) -> str:
        return f"{100 * self.accuracy:.2f} ± {100 * self.ci95:.2f}"


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """Scores by row (a normalisation mode, or the baseline) and by column (an episode shape).

    `lead` says how the model stands to the best head on the pretrained backbone, "" where there is none.
    """

    title: str
    columns: tuple[str, ...]
    rows: dict[str, dict[str, Score]]
    lead: str = ""


@dataclass(frozen=True, kw_only=True)
class Registered:
    """The registered version."""

    name: str
    version: int
    created: bool

    def __str__(self) -> str:
        return f"{self.name} version {self.version}, {'new' if self.created else 'already registered'}"


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """What the gate decided, and why in words; `waiting` means that a person has to approve."""

    name: str
    version: int
    is_champion: bool
    waiting: bool
    words: str

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True, kw_only=True)
class Summary:
    scores: ScoreTable
    stages: tuple[StageRun, ...]
    registered: Registered
    promotion: Promotion
    data_report: Path
    run_report: Path

    @property
    def reports(self) -> tuple[Path, Path]:
        return (self.run_report, self.data_report)


def read_scores(root: Path) -> ScoreTable:
    """The scores that the evaluate stage wrote."""
    path = Workspace(root).output("evaluate") / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        columns: list[str] = []
        rows: dict[str, dict[str, Score]] = {}
        baselines: dict[str, dict[str, Score]] = {}
        for result in metrics["results"]:
            column = result["title"]
            columns += [column] * (column not in columns)
            how = f"; {metrics['test_time']}" if "test_time" in metrics else ""
            norm = f", {result['norm']} norm" if "norm" in result else ""
            row = f"{metrics['algorithm']}, {result['mode']}{norm}{how}"
            rows.setdefault(row, {})[column] = Score(accuracy=result["accuracy"], ci95=result["ci95"])
            for name, score in result["baselines"].items():
                baselines.setdefault(name, {})[column] = Score(accuracy=score["accuracy"], ci95=score["ci95"])
        episodes = max(result["episodes"] for result in metrics["results"])
        lead = lead_in(metrics)
        words = lead.words(metrics["algorithm"]) if lead else ""
        title = f"Accuracy on held-out classes of {metrics['dataset']}, % ± 95% interval, {episodes:,} episodes each"
    except (OSError, ValueError, KeyError) as error:
        raise StageError(f"cannot read the scores in {path}: {error!r}; next: dvc repro --force evaluate") from error
    return ScoreTable(title=title, columns=tuple(columns), rows={**rows, **baselines}, lead=words)


def to_markdown(summary: Summary) -> str:
    table = summary.scores
    scores = [[row, *_cells(table, row)] for row in table.rows]
    stages = [[run.stage, run.outcome, f"{run.seconds:.1f}"] for run in summary.stages]
    return "\n\n".join(
        [
            f"**{table.title}**",
            _markdown_table(["", *table.columns], scores),
            *([table.lead] if table.lead else []),
            f"Registered model: {summary.registered}; {summary.promotion}",
            _markdown_table(["stage", "outcome", "seconds"], stages),
            "\n".join(f"- [{path}]({path.as_uri()})" for path in summary.reports),
        ]
    )


def to_terminal(summary: Summary, root: Path) -> RenderableType:
    table = summary.scores
    scores = Table(title=table.title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    scores.add_column("")
    for column in table.columns:
        scores.add_column(Text(in_short_lines(column)), justify="right", no_wrap=True)
    for row in table.rows:
        scores.add_row(row, *_cells(table, row))
    facts = Table.grid(padding=(0, 2))
    if table.lead:
        facts.add_row("heads", table.lead)
    facts.add_row("stages", ", ".join(f"{run.stage} {run.outcome} ({run.seconds:.1f} s)" for run in summary.stages))
    alias = " (champion)" if summary.promotion.is_champion else ""
    facts.add_row("registered", f"{summary.registered}{alias}")
    facts.add_row("promotion", unstyled(str(summary.promotion)))
    facts.add_row("reports", Text("\n".join(str(path.relative_to(root)) for path in summary.reports)))
    facts.add_row("UIs", "make ui opens MLflow and Prefect")
    return Group(scores, facts)


def terminal() -> Console:
    """As wide as the terminal; where there is none, a log gets lines of 120."""
    for stream in (sys.stdout, sys.stderr):
        escape_missing_letters(stream)
    return Console(width=None if sys.stdout.isatty() else _COLUMNS_OF_A_LOG)


def _cells(table: ScoreTable, row: str) -> list[str]:
    scores = table.rows[row]
    return [str(scores.get(column, "")) for column in table.columns]


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
