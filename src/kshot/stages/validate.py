"""Check the dataset against what the configured episodes need, with a Great Expectations suite.

Critical failures stop the pipeline: nothing is left under artifacts/validate, so that no later stage can
run on refused data. Warnings go into the report. Report and facts are also kept in .kshot/validate, where
they outlive a failed stage.
"""

import json
from pathlib import Path

from kshot.config import Params
from kshot.data.packed import PackedDataset
from kshot.data.union import check_united
from kshot.errors import ValidationError
from kshot.printing import counted
from kshot.validation.facts import collect_facts
from kshot.validation.remedies import DROP
from kshot.validation.report import CheckResult, findings, page, summary
from kshot.validation.suite import check, in_words
from kshot.workspace import Workspace

FACTS_FILE, REPORT_FILE, FINDINGS_FILE = "facts.json", "report.html", "findings.csv"


def run(params: Params, workspace: Workspace) -> None:
    """Write facts.json, report.html and findings.csv.

    On a critical failure keep them in .kshot only and raise ValidationError.
    """
    if params.dataset.of:
        check_united(params.dataset.of, params.dataset.name, workspace.data)
    dataset = PackedDataset.open(workspace.dataset(params.dataset.name))
    print(f"{dataset.name}: measuring {dataset.n_stored:,} items", flush=True)
    facts = collect_facts(dataset, params.task_pool.kinds_by_label(), params.validate, params.seed)
    print(f"{dataset.name}: holding them against the suite", flush=True)
    results = check(dataset, facts, params.validate)

    refused = [result for result in results if result.severity == "critical" and not result.passed]
    files = {
        FACTS_FILE: json.dumps(summary(dataset, facts, results), indent=1, sort_keys=True, ensure_ascii=False) + "\n",
        REPORT_FILE: page(dataset, facts, results, params.seed),
        FINDINGS_FILE: findings(results),
    }
    kept, output = workspace.validation, workspace.output("validate")
    _write(kept, files)
    if refused:
        for name in files:
            (output / name).unlink(missing_ok=True)
        for result in refused:
            print(in_words(result), flush=True)
        raise ValidationError(_refusal(dataset.name, results, refused, kept.relative_to(workspace.root)))
    _write(output, files)
    n_warnings = sum(not result.passed for result in results)
    print(f"{dataset.name}: {len(results)} checks, no critical failure, {counted(n_warnings, 'warning')}", flush=True)


def _refusal(name: str, results: list[CheckResult], refused: list[CheckResult], kept: Path) -> str:
    """The checks that failed, and the command for the first; one for all items to drop where several found some."""
    found = ", ".join(f"{result.name} ({result.found})" for result in refused)
    n_dropping = sum((result.remedy.findings["action"] == DROP).any() for result in refused)
    drop_all = f"kshot curate {name} drop --list {kept / FINDINGS_FILE}"
    command = drop_all if n_dropping > 1 else next((one.remedy.command for one in refused if one.remedy.command), "")
    following = f"; next: {command}" if command else ""
    return f"{name} fails {len(refused)} of {len(results)} checks: {found}; see {kept / REPORT_FILE}{following}"


def _write(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
