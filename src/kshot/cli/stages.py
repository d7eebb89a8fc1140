"""Commands that run one stage of dvc.yaml, for DVC and by hand."""

from importlib import import_module
from inspect import signature
from typing import Annotated

import typer

from kshot.errors import ConfigError
from kshot.runtime.cpu import prepare_environment
from kshot.runtime.lifeline import die_with_pipeline
from kshot.stages import STAGES
from kshot.workspace import Workspace


def stage(
    name: Annotated[str, typer.Argument(help="A stage of dvc.yaml.")],
    item: Annotated[str | None, typer.Argument(help="Of a stage with foreach in dvc.yaml: one of its items.")] = None,
) -> None:
    """Run the stage NAME here and now, whether or not its result is up to date."""
    if name not in STAGES:
        raise ConfigError(f"no stage {name!r}; known: {', '.join(STAGES)}")
    die_with_pipeline()
    prepare_environment()
    from kshot.config import load_params

    found = Workspace.find()
    params, workspace = load_params(found.params), Workspace(found.root.resolve())
    run = import_module(STAGES[name]).run
    takes_an_item = len(signature(run).parameters) > len((params, workspace))
    if takes_an_item != (item is not None):
        need = f"need one of {name} in dvc.yaml" if takes_an_item else "need none"
        raise ConfigError(f"the stage {name} was given {'no item' if item is None else f'the item {item!r}'}; {need}")
    if item is None:
        run(params, workspace)
    else:
        run(params, workspace, item)


def validate() -> None:
    """Check the dataset against params.yaml; critical findings stop the pipeline."""
    stage("validate")


def pool() -> None:
    """Freeze the meta_val and meta_test episodes."""
    stage("task_pool")


def train() -> None:
    """Meta-train the learner; resumes where a run of the same settings was cut off."""
    stage("meta_train")


def evaluate() -> None:
    """Score the trained learner on held-out classes."""
    stage("evaluate")


def cross_domain(dataset: Annotated[str, typer.Argument(help="A packed dataset under data/.")]) -> None:
    """Score the trained learner on the held-out classes of another dataset."""
    stage("cross_domain", dataset)
