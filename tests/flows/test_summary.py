"""What a run says at its end, from files that the stages wrote."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.summary import Promotion, Registered, Summary, read_scores, to_markdown, to_terminal


def summary(root: Path, **more: Any) -> tuple[str, str]:
    """On the terminal and in Markdown, of an evaluation of ridge."""
    result = {"title": "5-way 1-shot", "mode": "non-transductive", "accuracy": 0.6, "ci95": 0.01, "episodes": 100}
    result |= more.pop("of_result", {})
    result["baselines"] = {"pretrained, logistic": {"accuracy": 0.62, "ci95": 0.01}}
    folder = root / "artifacts" / "evaluate"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(
        json.dumps({"algorithm": "ridge", "dataset": "photos", "results": [result]} | more)
    )
    found = Summary(
        scores=read_scores(root),
        stages=(),
        registered=Registered(name="toy", version=1, created=True),
        promotion=Promotion(name="toy", version=1, is_champion=True, waiting=False, words="promoted"),
        data_report=root / "data.html",
        run_report=root / "run.html",
    )
    console = Console(width=200)
    with console.capture() as shown:
        console.print(to_terminal(found, root))
    return shown.get(), to_markdown(found)


def test_a_run_says_how_the_model_stands_to_the_best_head_where_there_are_some(tmp_path: Path) -> None:
    lead = {
        "best": "pretrained, logistic",
        "difference": -0.02,
        "ci95": 0.005,
        "alternatives": ["pretrained, logistic"],
    }
    words = (
        "the best other head on the pretrained backbone (pretrained, logistic) is ahead of ridge by 2.00 ± 0.50 points"
    )
    assert all(words in said for said in summary(tmp_path, pretrained=lead))
    assert not any("pretrained backbone" in said for said in summary(tmp_path))


def test_a_norm_other_than_that_of_batches_stands_beside_the_mode(tmp_path: Path) -> None:
    assert all("ridge, non-transductive, task norm" in said for said in summary(tmp_path, of_result={"norm": "task"}))
    assert not any("task norm" in said for said in summary(tmp_path))
