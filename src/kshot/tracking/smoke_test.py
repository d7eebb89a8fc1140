"""Whether a registered version still answers as it did when it was registered, asked as a server would ask it.

The version is loaded in a fresh interpreter: in a process that has imported kshot, MLflow uses that kshot in place
of the source that was registered, and so would pass a version whose own source is broken.
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from mlflow.entities.model_registry import ModelVersion
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from kshot.errors import KshotError, StageError
from kshot.tracking.runs import EXPECTED, SMOKE_TEST
from kshot.tracking.store import first_line
from kshot.tracking.versions import download, is_local

TIME_LIMIT_S = 300.0
_SCRIPT = Path(__file__).resolve().with_name("ask_model.py")
_TOLERANCE = 1e-4  # of a probability: another CPU rounds otherwise
_OF_THIS_PROCESS = ("MLFLOW_TRACKING_URI", "PYTHONHOME", "PYTHONPATH")  # which a server does not have


def smoke_test(version: ModelVersion) -> None:
    """Raise StageError unless the version answers its recorded call, within `TIME_LIMIT_S`, as it did then."""
    where = f"version {version.version} of {version.name}"
    try:
        with TemporaryDirectory() as folder:
            found, expected = _answers(version, Path(folder))
    except (KshotError, OSError) as error:
        raise StageError(f"{where} fails its smoke test: {first_line(error)}") from error
    if found.shape != expected.shape or not np.allclose(found, expected, atol=_TOLERANCE):
        raise StageError(
            f"{where} fails its smoke test: it answers {_numbers(found)}; need {_numbers(expected)}, as at registration"
        )


def _answers(version: ModelVersion, folder: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """What the version answers now, and what it answered at registration."""
    recorded = load_file(download(f"runs:/{version.run_id}/{SMOKE_TEST}", folder))
    expected = recorded.pop(EXPECTED)
    call, answer = folder / "call.safetensors", folder / "answer.safetensors"
    save_file(recorded, call)
    model = download(f"models:/{version.name}/{version.version}", None if is_local() else folder / "model")
    _run([str(_SCRIPT), str(model.resolve()), str(call), str(answer)], folder)
    return load_file(answer)["answer"], expected


def _run(arguments: list[str], folder: Path) -> None:
    """Run the script in `folder`, isolated (-I) and without writing bytecode (-B) beside the registered source."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-B", *arguments],
            cwd=folder,
            env={name: value for name, value in os.environ.items() if name not in _OF_THIS_PROCESS},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIME_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise StageError(
            f"no answer in {TIME_LIMIT_S:g} s; need one; next: run it again where this machine was busy"
        ) from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode} without an error"]
        raise StageError(lines[-1].strip())


def _numbers(values: Any) -> str:
    return np.array2string(np.asarray(values), precision=4, threshold=4)
