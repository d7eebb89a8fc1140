"""Training states on disk, from which a run that was cut off goes on.

Tensors are stored as safetensors, the rest as JSON, and the SHA-256 of each file beside them: a damaged state is never
loaded.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from pydantic import TypeAdapter
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes

from kshot.errors import CheckpointError
from kshot.model import on_cpu
from kshot.runtime.files import json_bytes, write_folder
from kshot.training.loop import Progress, TrainingState

_KEPT = 2

_WEIGHTS, _OPTIMIZER, _BEST, _PROGRESS = (
    "weights.safetensors", "optimizer.safetensors", "best_weights.safetensors", "progress.json"
)  # fmt: skip
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class CheckpointFolder:
    """Training states in step-000123 folders; the newest two are kept."""

    folder: Path

    def save(self, state: TrainingState) -> None:
        """Raises CheckpointError where the disk does not take it; the state before is as it was then."""
        files = {
            _WEIGHTS: tensors_to_bytes(on_cpu(state.weights)),
            _OPTIMIZER: tensors_to_bytes(on_cpu(state.optimizer)),
            _BEST: tensors_to_bytes(on_cpu(state.best_weights)),
            _PROGRESS: json_bytes(asdict(state.progress)),
        }
        hashes = {name: sha256(content).hexdigest() for name, content in files.items()}
        try:
            write_folder(self.folder / f"step-{state.progress.step:09d}", files | {_MANIFEST: json_bytes(hashes)})
            for old in self._newest_first()[_KEPT:]:
                shutil.rmtree(old)
        except OSError as error:
            raise CheckpointError(
                f"the checkpoint of step {state.progress.step:,} cannot be written to {self.folder} "
                f"({error.strerror}); the one before is intact; next: mend the disk, then the same command goes on "
                "from it"
            ) from error

    def latest(self) -> TrainingState | None:
        """The newest intact state; None when nothing was ever saved.

        Raises CheckpointError when there are states and all are damaged.
        """
        saved = self._newest_first()
        for candidate in saved:
            state = _read_state(candidate)
            if state is not None:
                return state
        if saved:
            raise CheckpointError(
                f"{len(saved)} checkpoints in {self.folder}, none as it was written; need one intact; "
                f"next: rm -r {self.folder} and train from the start"
            )
        return None

    def _newest_first(self) -> list[Path]:
        return sorted((p for p in self.folder.glob("step-*") if re.fullmatch(r"step-\d+", p.name)), reverse=True)


def _read_state(folder: Path) -> TrainingState | None:
    """The state in `folder`, or None when a file is missing or differs from its hash."""
    try:
        hashes: Mapping[str, str] = json.loads((folder / _MANIFEST).read_bytes())
        files = {name: (folder / name).read_bytes() for name in hashes}
    except (OSError, ValueError):
        return None
    if hashes.keys() != {_WEIGHTS, _OPTIMIZER, _BEST, _PROGRESS}:
        return None
    if any(sha256(files[name]).hexdigest() != expected for name, expected in hashes.items()):
        return None
    return TrainingState(
        progress=TypeAdapter(Progress).validate_json(files[_PROGRESS]),
        weights=tensors_from_bytes(files[_WEIGHTS]),
        optimizer=tensors_from_bytes(files[_OPTIMIZER]),
        best_weights=tensors_from_bytes(files[_BEST]),
    )
