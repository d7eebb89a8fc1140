"""The promotion gate at work: fetch two versions, score them on the same episodes, decide, move the alias."""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from kshot.config import Params
from kshot.data.gather import item_gather
from kshot.data.packed import PackedDataset
from kshot.episodes.frozen import hashes_of_test_pools, read_frozen
from kshot.errors import ModelError
from kshot.evaluation.baselines import pretrained_baselines, untrained_baselines
from kshot.evaluation.grid import Grid, score_model, write_scores
from kshot.evaluation.scorecard import CLASSES, EPISODES, METRICS, Scorecard, episodes_id, read_scorecard
from kshot.model import load_model
from kshot.promotion.rule import PromotionDecision, decide
from kshot.promotion.settings import PromotionSettings
from kshot.runtime.lines import LiveLines
from kshot.runtime.process import set_up_process
from kshot.runtime.workers import choose_device
from kshot.serving.classifier import FewShotClassifier, check_weights
from kshot.serving.files import open_files
from kshot.serving.galleries import GalleryStore
from kshot.serving.leave_one_out import leave_one_out
from kshot.serving.served_model import ServedModel
from kshot.tracking import (
    CHALLENGER,
    CHAMPION,
    COST,
    RegisteredModel,
    fetch_model,
    fetch_run_files,
    move_champion,
    record_decision,
    run_metrics,
    version_with,
)
from kshot.workspace import Workspace

Result = Literal["promoted", "refused", "waits for approval", "dry run", "champion already", "promotion is off"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome for a version. `decision` is None where there was nothing to decide."""

    name: str
    version: int
    champion: int | None  # before
    result: Result
    decision: PromotionDecision | None = None

    @property
    def is_champion(self) -> bool:
        return self.result in ("promoted", "champion already")

    def __str__(self) -> str:
        words = f"version {self.version} {self.result}" if self.result != "promotion is off" else self.result
        return words if self.decision is None else f"{words}: {self.decision.reason}"


def decide_promotion(
    root: Path,
    params: Params,
    *,
    by: str,
    version: int | None = None,
    approved: bool = False,
    report: Callable[[str], None] = print,
) -> Outcome:
    """Decide whether `version` (the challenger, where None) becomes champion, store why, and move the alias if so.

    `approved` is a person's approval, where params.register.promotion asks for one. Raises ModelError for a model,
    version or file that is not there, StageError when the champion changed meanwhile or a smoke test fails;
    the champion stays as it was.
    """
    settings, name = params.register.promotion, params.register.model_name
    champion_number = version_with(name, CHAMPION, root)
    if version is None:
        version = version_with(name, CHALLENGER, root) or champion_number
    challenger = fetch_model(f"models:/{name}@{CHALLENGER}" if version is None else f"models:/{name}/{version}", root)
    outcome = partial(Outcome, name=name, version=challenger.version, champion=champion_number)
    if challenger.version == champion_number:
        return outcome(result="champion already")
    if settings.mode == "off":
        return outcome(result="promotion is off")
    champion = None if champion_number is None else fetch_model(f"models:/{name}/{champion_number}", root)
    cards = _scorecards(root, params, challenger, champion, report)
    decision = decide(*cards, settings, _in_galleries(root, settings, challenger, champion, report))
    about = {"challenger": challenger.version, "champion": champion_number, "by": by, "approved": approved}
    record_decision(
        name,
        challenger.version,
        root,
        verdict=decision.verdict,
        reason=decision.reason,
        decision=about | asdict(decision) | {"settings": asdict(settings)},
    )
    result = _result(decision, settings, approved)
    if result == "promoted":
        move_champion(name, root, version=challenger.version, expected=champion_number, reason=decision.reason, by=by)
    return outcome(result=result, decision=decision)


def _result(decision: PromotionDecision, settings: PromotionSettings, approved: bool) -> Result:
    if not decision.promote:
        return "refused"
    if settings.mode == "dry_run":
        return "dry run"
    if settings.approval == "required" and not approved:
        return "waits for approval"
    return "promoted"


def _in_galleries(
    root: Path,
    settings: PromotionSettings,
    challenger: RegisteredModel,
    champion: RegisteredModel | None,
    report: Callable[[str], None],
) -> dict[str, tuple[float, float]]:
    """Accuracies of champion and challenger by leaving one out, in each gallery that has two examples of a class."""
    if settings.max_gallery_drop is None or champion is None:
        return {}
    store = GalleryStore(open_files(settings.galleries or str(Workspace(root).galleries)))
    found = {}
    for name in store.names():
        before, after = (leave_one_out(_served(model), store, name).accuracy for model in (champion, challenger))
        if before is None or after is None:
            report(f"gallery {name} has no class with two examples; it is passed over")
            continue
        report(f"gallery {name}: {before:.2%} with version {champion.version}, {after:.2%} with {challenger.version}")
        found[name] = before, after
    return found


def _served(model: RegisteredModel) -> ServedModel:
    classifier = FewShotClassifier.load(model.folder, weights_sha256=model.weights_sha256)
    return ServedModel(name=f"models:/{model.name}/{model.version}", version=str(model.version), classifier=classifier)


def _scorecards(
    root: Path,
    params: Params,
    challenger: RegisteredModel,
    champion: RegisteredModel | None,
    report: Callable[[str], None],
) -> tuple[Scorecard, Scorecard | None]:
    """Both on the same episodes: their own where these are the same, else those frozen in `root`."""
    of_challenger = _logged(challenger, root)
    if champion is None:
        return of_challenger, None
    of_champion = _logged(champion, root)
    if of_champion.episodes == of_challenger.episodes:
        return of_challenger, of_champion
    workspace = Workspace(root)
    dataset = PackedDataset.open(workspace.dataset(params.dataset.name))
    current = episodes_id(dataset, hashes_of_test_pools(workspace.output("task_pool")))
    cards = []
    for model, card in ((challenger, of_challenger), (champion, of_champion)):
        if card.episodes != current:
            report(f"version {model.version} was scored on other episodes; scoring it on those of this workspace ...")
            card = _rescored(model, workspace, params, dataset, with_baselines=model is challenger)
        cards.append(card)
    return cards[0], cards[1]


def _logged(model: RegisteredModel, root: Path) -> Scorecard:
    """What the evaluation of the version's own run found out."""
    with tempfile.TemporaryDirectory() as folder:
        names = [f"evaluate/{name}" for name in (METRICS, EPISODES, CLASSES)]
        fetch_run_files(model.mlflow_run_id, names, Path(folder), root)
        return read_scorecard(
            Path(folder) / "evaluate", model.weights_sha256, algorithm=model.algorithm, **_times(model, root)
        )


def _rescored(
    model: RegisteredModel, workspace: Workspace, params: Params, dataset: PackedDataset, *, with_baselines: bool
) -> Scorecard:
    """The baselines of this workspace stand beside the challenger; nothing reads those of a champion."""
    check_weights(model.folder / "weights.safetensors", model.weights_sha256)
    saved = load_model(model.folder)
    if saved.item != dataset.item:
        raise ModelError(
            f"version {model.version} of {model.name} takes items {saved.item}; {dataset.folder} has {dataset.item}; "
            "need equal ones to compare; next: register under a new model name"
        )
    set_up_process(params.process)
    device = choose_device(params.process.device)
    gather = item_gather(dataset, device)
    frozen = read_frozen(workspace.output("task_pool"), dataset, params.task_pool)
    found = score_model(
        Grid(dataset=dataset, frozen=frozen, seed=params.seed),
        saved.on(device),
        gather,
        baselines=untrained_baselines(saved.config, dataset, gather, seed=params.seed) if with_baselines else {},
        pretrained=pretrained_baselines(workspace.pretrained_model, saved.learner, dataset, gather, seed=params.seed)
        if with_baselines
        else {},
        lines=LiveLines(partial(print, flush=True)),
    )
    with tempfile.TemporaryDirectory() as folder:
        write_scores(Path(folder), found, dataset)
        return read_scorecard(
            Path(folder), model.weights_sha256, algorithm=model.algorithm, **_times(model, workspace.root)
        )


def _times(model: RegisteredModel, root: Path) -> dict[str, float | None]:
    """Milliseconds for adapting and for classifying, measured when the version was registered."""
    metrics = run_metrics(model.mlflow_run_id, root)
    return {name: metrics.get(f"{COST}{name}") for name in ("adapt_ms", "classify_ms")}
