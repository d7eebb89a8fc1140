"""A registered version, made again from what was recorded of it: commit, params.yaml, dvc.lock and data.dvc."""

import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from safetensors.torch import load_file

from kshot.errors import ModelError, StageError
from kshot.evaluation.intervals import Interval, paired_difference
from kshot.evaluation.scorecard import CLASSES, EPISODES, METRICS, read_scorecard
from kshot.project.git import git
from kshot.project.remote import copy_remotes
from kshot.tracking import RegisteredModel, fetch_model, fetch_run_files
from kshot.workspace import Workspace

RECORDED = ("params.yaml", "dvc.lock", "data.dvc")
TOLERANCE = 0.005  # of accuracy, the mean over settings, where a rebuild on another device may differ
_EVALUATION = tuple(f"evaluate/{name}" for name in (METRICS, EPISODES, CLASSES))


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What the registry says of a version: `evaluation` is a folder with the files of its evaluation."""

    model: RegisteredModel
    commit: str
    device: str
    evaluation: Path


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How the rebuilt version compares with the recorded one. `weight_difference` is the largest of any weight."""

    words: Literal["equal to the bit", "within tolerance", "different"]
    same_weights: bool
    same_episodes: bool
    weight_difference: float
    difference: Interval  # rebuilt minus recorded, paired by episode
    recorded_device: str
    device: str

    @property
    def passed(self) -> bool:
        return self.words != "different"

    def __str__(self) -> str:
        parts = [
            f"weights {'equal' if self.same_weights else f'differ by up to {self.weight_difference:.2g}'}",
            f"episode results {'equal' if self.same_episodes else 'differ'}",
            f"accuracy {100 * self.difference.mean:+.3f} ± {100 * self.difference.half_width:.3f} points",
            f"{self.device}, recorded on {self.recorded_device}",
        ]
        return f"{self.words}: {'; '.join(parts)}"


def recorded_version(name: str, version: int, root: Path, folder: Path) -> Recorded:
    """Fetch what is recorded into `folder`. Raises ModelError where it is not enough to rebuild the version."""
    model = fetch_model(f"models:/{name}/{version}", root)
    commit = model.tags.get("git_commit", "none")
    if commit == "none":
        raise ModelError(f"version {version} of {name} was made outside of git; need a commit to rebuild it")
    if model.tags.get("git_dirty") != "false":
        raise ModelError(
            f"version {version} of {name} was made with uncommitted changes on top of {commit[:12]}, which nothing "
            "holds; need a version made from a commit; next: git commit, make train"
        )
    fetch_run_files(model.mlflow_run_id, (*RECORDED, *_EVALUATION), folder, root)
    return Recorded(
        model=model,
        commit=commit,
        device=model.tags.get("training_device", "unknown"),
        evaluation=folder / "evaluate",
    )


def clean_clone(root: Path, recorded: Recorded, files: Path, target: Path) -> None:
    """A clone of `root` at the version's commit with the recorded files, an empty cache and the remote of `root`."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    git(root, "clone", "--quiet", "--no-checkout", str(root), str(target))
    try:
        git(target, "checkout", "--quiet", "--detach", recorded.commit)
    except StageError as error:
        raise StageError(f"{error}; need commit {recorded.commit[:12]}; next: git fetch") from error
    for name in RECORDED:
        shutil.copyfile(files / name, target / name)
    copy_remotes(root, target)


def check_weights_of(recorded: Recorded, folder: Path) -> None:
    """StageError unless the weights that DVC gave back are those that the registry names."""
    found = _sha256(Workspace(folder).weights)
    if found != recorded.model.weights_sha256:
        raise StageError(
            f"the weights of dvc.lock have SHA-256 {found[:12]}; the registry names "
            f"{recorded.model.weights_sha256[:12]}; need equal ones"
        )


def compare_rebuilt(recorded: Recorded, folder: Path, device: str) -> Verdict:
    """Compare the stages' new outputs in `folder` with what is recorded of the version."""
    weights = Workspace(folder).weights
    same_weights = _sha256(weights) == recorded.model.weights_sha256
    tables = [pd.read_parquet(path / EPISODES) for path in (recorded.evaluation, Workspace(folder).output("evaluate"))]
    same_episodes = bool(tables[0].equals(tables[1]))
    old = read_scorecard(recorded.evaluation, recorded.model.weights_sha256)
    new = read_scorecard(Workspace(folder).output("evaluate"), _sha256(weights))
    if old.episodes != new.episodes:
        raise StageError(
            f"the rebuilt run was scored on episodes {new.episodes[:12]}, the recorded one on {old.episodes[:12]}; "
            "need the same data and pools"
        )
    difference = paired_difference(new.accuracy, old.accuracy)
    equal, other_device = same_weights and same_episodes, device != recorded.device
    tolerable = other_device and abs(difference.mean) <= TOLERANCE
    return Verdict(
        words="equal to the bit" if equal else "within tolerance" if tolerable else "different",
        same_weights=same_weights,
        same_episodes=same_episodes,
        weight_difference=0.0 if same_weights else _largest_difference(weights, recorded.model.folder),
        difference=difference,
        recorded_device=recorded.device,
        device=device,
    )


def _largest_difference(weights: Path, recorded: Path) -> float:
    new, old = load_file(weights), load_file(recorded / "weights.safetensors")
    return max(
        float((new[name].float() - old[name].float()).abs().max()) for name in old if _comparable(new, old, name)
    )


def _comparable(new: dict[str, torch.Tensor], old: dict[str, torch.Tensor], name: str) -> bool:
    return name in new and new[name].shape == old[name].shape and old[name].numel() > 0


def _sha256(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()
