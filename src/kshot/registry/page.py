"""The page of a registered version: what came of it, its results, what changed since the champion, how to rebuild it.

Made from what its run logged and from the registry alone, so the page of any version can be made again.
"""

import json
import tempfile
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kshot.errors import KshotError
from kshot.evaluation.intervals import Interval
from kshot.evaluation.over_seeds import over_seeds
from kshot.evaluation.report import SECTIONS, headline
from kshot.evaluation.scorecard import lead_in
from kshot.pages.page import markup, render
from kshot.registry.comparison import Change, Comparison, compare, data_lines, points, verdict
from kshot.tracking import (
    CHAMPION,
    COST,
    RegisteredModel,
    attach,
    fetch_model,
    fetch_run_files,
    history,
    last_decision,
    run_metrics,
    version_with,
)
from kshot.workspace import Workspace

_LINEAGE = (
    "git_commit",
    "git_dirty",
    "dvc_lock_sha256",
    "data_hash",
    "held_out_episodes",
    "weights_sha256",
    "difficulty_sha256",
    "training_device",
    "kshot_version",
    "flow_run_id",
)
_FACTS = "validate/facts.json"
_METRICS = "evaluate/metrics.json"
_SECTIONS = f"evaluate/{SECTIONS}"


def write_run_report(name: str, version: int, root: Path) -> Path:
    """Write the page of a version under .kshot/reports and attach it to its MLflow run, as report.html.

    Raises ModelError for an unknown model or version, or where a file of its run is lost.
    """
    model = fetch_model(f"models:/{name}/{version}", root)
    decision = last_decision(model.mlflow_run_id, root)
    against = decision["champion"] if decision else None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        others = json.loads(model.tags.get("cross_domain", "[]"))
        cross_domain = {other: f"cross_domain/{other}/metrics.json" for other in others}
        seeds = {seed: f"seeds/{seed}/metrics.json" for seed in json.loads(model.tags.get("seeds", "[]"))}
        names = (_FACTS, _METRICS, _SECTIONS, *cross_domain.values(), *seeds.values())
        fetch_run_files(model.mlflow_run_id, names, folder, root)
        evaluation = _read(folder / _METRICS)
        page = render(
            "run.html.j2",
            model=model,
            metrics=evaluation,
            headline=headline(evaluation),
            lead=lead_in(evaluation),
            state=_state(model, decision, root),
            decision=decision,
            sections=markup((folder / _SECTIONS).read_text(encoding="utf-8")),
            over_seeds=over_seeds(evaluation, {seed: _read(folder / path) for seed, path in seeds.items()}),
            cross_domain={other: _read(folder / path)["results"] for other, path in cross_domain.items()},
            warnings=[check for check in _read(folder / _FACTS)["checks"] if not check["passed"]],
            changes=None if against is None else _changes(compare(name, against, version, root), decision or {}),
            time=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            cost=_cost(model, root),
            is_committed=model.tags.get("git_commit", "none") != "none" and model.tags.get("git_dirty") == "false",
            lineage={tag: model.tags[tag] for tag in _LINEAGE if tag in model.tags},
        )
    path = Workspace(root).report(name, version)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    attach(model.mlflow_run_id, path, root)
    return path


def renew_run_reports(name: str, versions: Iterable[int | None], root: Path, report: Callable[[str], None]) -> None:
    """The pages of versions whose state may have changed; one that cannot be made is reported, and stops nothing."""
    for version in versions:
        try:
            if version is not None:
                write_run_report(name, version, root)
        except KshotError as error:
            report(f"the page of version {version} is as it was: {error}")


def _state(model: RegisteredModel, decision: dict[str, Any] | None, root: Path) -> str:
    """What the version is now, in words."""
    champion, number = version_with(model.name, CHAMPION, root), model.version
    now = f"version {champion} is champion" if champion else "there is no champion"
    if champion == number:
        return "is champion"
    for move in reversed(history(model.name, root)):
        if move.outcome == "moved" and move.champion == number:
            how = f"was rolled back ({move.reason})" if move.action == "rollback" else "was champion"
            return f"{how}; {now}"
        if move.outcome == "refused" and move.version == number:
            return f"is not champion: {move.reason}"
    if decision is None:
        return "is registered; nothing was decided on it yet"
    return f"may be promoted; {now}" if decision["promote"] else "is refused"


def _changes(comparison: Comparison, decision: dict[str, Any]) -> dict[str, Any]:
    """A comparison as the page shows it. The gate scores both anew where their runs have other episodes."""
    lists: dict[str, tuple[Change, ...]] = {"Settings": comparison.params, "Code": comparison.code}
    anew = comparison.overall is None and not comparison.same_model and decision.get("difference")
    return {
        "before": comparison.before,
        "verdict": f"{points(Interval(**anew))} points, both scored anew by the gate" if anew else verdict(comparison),
        "scores": comparison.settings,
        "lists": lists,
        "data": list(data_lines(comparison.data)),
    }


def _cost(model: RegisteredModel, root: Path) -> dict[str, float]:
    """Times, size and memory, by name; what was not measured is not there."""
    metrics = run_metrics(model.mlflow_run_id, root)
    final = "meta_train/final/"
    cost = {key.removeprefix(COST): value for key, value in metrics.items() if key.startswith(COST)}
    training = {key: metrics[final + key] for key in ("peak_memory_bytes", "episodes_per_s") if final + key in metrics}
    return cost | training


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
