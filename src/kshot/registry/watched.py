"""Galleries in use against what the registry keeps with their version."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pandas as pd

from kshot.errors import DataError, ModelError
from kshot.evaluation.reference import REFERENCE
from kshot.monitoring.answers import galleries_in
from kshot.monitoring.monitor import Watched, watch
from kshot.monitoring.page import write_page
from kshot.tracking import fetch_model, fetch_run_files
from kshot.workspace import Workspace


def watch_galleries(
    workspace: Workspace, log: Path, gallery: str, *, n_window: int, n_reference: int
) -> Iterator[tuple[Watched, Path]]:
    """What was found in one gallery, or in each that is in the log, with its page.

    Raises DataError where there is nothing to look at; of all galleries, those with too few answers are passed over.
    """
    names = [gallery] if gallery else galleries_in(log)
    if not names:
        raise DataError(f"found no answers in {log}; need those of a service; next: kshot serve, and ask it")
    n_found = 0
    for name in names:
        try:
            found, reference, window = watch(
                log, name, n_window=n_window, n_reference=n_reference, kept=partial(_kept, workspace.root)
            )
        except DataError:
            if gallery or (name == names[-1] and not n_found):
                raise
            continue
        n_found += 1
        yield found, write_page(workspace.monitored(name), found, reference, window)


def _kept(root: Path, model: str) -> pd.DataFrame | None:
    """The sample of answers on meta_val that a version keeps; None where it keeps none, or is no registered one."""
    try:
        registered = fetch_model(model, root)
        with tempfile.TemporaryDirectory() as folder:
            fetch_run_files(registered.mlflow_run_id, [f"evaluate/{REFERENCE}"], Path(folder), root)
            return pd.read_parquet(Path(folder) / "evaluate" / REFERENCE)
    except ModelError:
        return None
