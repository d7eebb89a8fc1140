"""Which version is champion: moved only here, as a transaction, with a history that loses nothing.

A move holds the lock of the store. It goes on only while the champion is the one that the decision was
made against, and only with a version that passes its smoke test. Its steps, in order:

    entry      in the history, as begun
    previous   the way back
    champion   the move itself, one write
    entry      as moved

A process that dies in between leaves an entry that is begun; the next one that looks carries it out.
The history is one tag of the registered model for each entry, so that it is seen in MLflow too.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from kshot.errors import ModelError, StageError
from kshot.tracking.runs import CHALLENGER, CHAMPION, PREVIOUS, aliases
from kshot.tracking.smoke_test import smoke_test
from kshot.tracking.store import first_line, open_store
from kshot.tracking.versions import REASON_TAG, check_name, check_registry, download, find_version

_ENTRY = "champion_history."
_DECISIONS = "promotion"  # a folder of the run: one file per decision, named by its time
_VERDICT_TAG = "promotion"
_TAG_LENGTH = 5000  # what the registry's column holds on a server database


@dataclass(frozen=True, kw_only=True)
class Move:
    """One entry of the history. `version` was to be champion in place of `champion`; `by` names who asked.

    outside: somebody made it champion by other means than kshot, found when the next move began.
    """

    number: int
    time: str  # UTC, ISO 8601
    action: Literal["promote", "rollback", "outside"]
    version: int
    champion: int | None
    outcome: Literal["begun", "moved", "refused"]
    reason: str
    by: str


def move_champion(
    name: str, root: Path, *, version: int, expected: int | None, reason: str, by: str, tracking_uri: str | None = None
) -> Move:
    """Make `version` the champion of the model `name` if that still is version `expected` (None: there is none).

    Raises StageError, with the champion as it was, when it is another one by now or when the version fails
    its smoke test; the history has that attempt too. Raises ModelError for an unknown model or version.
    """
    with _changing(name, root, tracking_uri) as client:
        find_version(client, name, None, str(version))
        moves = _settled_history(client, name)
        return _move(client, name, moves, "promote", version, expected, reason, by)


def rollback(name: str, root: Path, *, reason: str, by: str, tracking_uri: str | None = None) -> Move:
    """Make the champion before this one champion again. Raises ModelError where there is none to go back to."""
    with _changing(name, root, tracking_uri) as client:
        champion = int(find_version(client, name, CHAMPION, None).version)
        moves = _settled_history(client, name)
        before = _way_back(moves)
        if before is None:
            raise ModelError(f"{name} has no champion before version {champion}; need one to go back to")
        return _move(client, name, moves, "rollback", before, champion, reason, by)


def history(name: str, root: Path, tracking_uri: str | None = None) -> tuple[Move, ...]:
    """Every move of the champion and every refused one, oldest first."""
    check_registry(root, tracking_uri)
    with open_store(root, tracking_uri) as client:
        check_name(client, name)
        moves = _read(client, name)
        if not _is_begun(moves) and _unknown_champion(client, name, moves) is None:
            return moves
    with _changing(name, root, tracking_uri) as client:
        return _settled_history(client, name)


def record_decision(
    name: str, version: int, root: Path, *, verdict: str, reason: str, decision: Mapping[str, Any]
) -> None:
    """Store a decision with the version: tags for the verdict and its reason, and the whole as a JSON artifact."""
    with open_store(root) as client:
        found = find_version(client, name, None, str(version))
        client.log_dict(str(found.run_id), dict(decision), f"{_DECISIONS}/{_now().replace(':', '')}.json")
        client.set_model_version_tag(name, str(version), _VERDICT_TAG, verdict)
        client.set_model_version_tag(name, str(version), REASON_TAG, reason[:_TAG_LENGTH])


def last_decision(mlflow_run_id: str, root: Path) -> dict[str, Any] | None:
    """What `record_decision` stored last with a version's run; None where nothing was decided."""
    with open_store(root) as client, TemporaryDirectory() as folder:
        stored = sorted(file.path for file in client.list_artifacts(mlflow_run_id, _DECISIONS))
        if not stored:
            return None
        path = download(f"runs:/{mlflow_run_id}/{stored[-1]}", Path(folder))
        decision: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return decision


@contextmanager
def _changing(name: str, root: Path, tracking_uri: str | None) -> Iterator[MlflowClient]:
    """A client that may change the model `name`, which there has to be already: a lock is made for no other."""
    check_registry(root, tracking_uri)
    with open_store(root, tracking_uri) as client:
        check_name(client, name)
    with open_store(root, tracking_uri, change=name) as client:
        yield client


def _move(
    client: MlflowClient,
    name: str,
    moves: tuple[Move, ...],
    action: Literal["promote", "rollback"],
    version: int,
    expected: int | None,
    reason: str,
    by: str,
) -> Move:
    champion = _holder(client, name, CHAMPION)
    entry = Move(
        number=len(moves) + 1,
        time=_now(),
        action=action,
        version=version,
        champion=champion,
        outcome="begun",
        reason=reason,
        by=by,
    )
    try:
        if champion != expected:
            raise StageError(
                f"the champion of {name} is {_words(champion)}, the decision was made against {_words(expected)}; "
                "next: decide again"
            )
        if champion == version:
            raise StageError(f"version {version} is the champion of {name} already")
        smoke_test(client.get_model_version(name, str(version)))
    except StageError as error:
        _write(client, name, replace(entry, outcome="refused", reason=str(error)))
        raise
    _write(client, name, entry)
    return _carry_out(client, name, (*moves, entry))


def _carry_out(client: MlflowClient, name: str, moves: tuple[Move, ...]) -> Move:
    """Carry out the writes of the last entry; if one fails, put the aliases back."""
    entry, before = moves[-1], aliases(client, name)
    moved = replace(entry, outcome="moved")
    try:
        _set_alias(client, name, PREVIOUS, _way_back((*moves[:-1], moved)))
        _set_alias(client, name, CHAMPION, entry.version)
        if before.get(CHALLENGER) == str(entry.version):
            client.delete_registered_model_alias(name, CHALLENGER)
    except (OSError, MlflowException) as error:
        for alias in (PREVIOUS, CHAMPION, CHALLENGER):
            _set_alias(client, name, alias, int(before[alias]) if alias in before else None)
        _write(client, name, replace(entry, outcome="refused", reason=f"the registry failed: {first_line(error)}"))
        raise
    _write(client, name, moved)
    return moved


def _settled_history(client: MlflowClient, name: str) -> tuple[Move, ...]:
    """The history, with entries that were begun carried out, and moves by other means noted."""
    moves = _read(client, name)
    if _is_begun(moves):
        moves = (*moves[:-1], _carry_out(client, name, moves))
    unknown = _unknown_champion(client, name, moves)
    if unknown is not None:
        entry = Move(
            number=len(moves) + 1,
            time=_now(),
            action="outside",
            version=unknown,
            champion=_last_champion(moves),
            outcome="moved",
            reason="the alias was set by other means than kshot",
            by="unknown",
        )
        _write(client, name, entry)
        moves = (*moves, entry)
    return moves


def _is_begun(moves: tuple[Move, ...]) -> bool:
    return bool(moves) and moves[-1].outcome == "begun"


def _unknown_champion(client: MlflowClient, name: str, moves: tuple[Move, ...]) -> int | None:
    """The champion, where it is not the one that the history ends with."""
    champion = _holder(client, name, CHAMPION)
    return None if champion == _last_champion(moves) else champion


def _last_champion(moves: tuple[Move, ...]) -> int | None:
    stack = _stack(moves)
    return stack[-1] if stack else None


def _stack(moves: tuple[Move, ...]) -> list[int]:
    """The champions that a rollback goes back through; the last is the champion."""
    stack: list[int] = []
    for move in moves:
        if move.outcome != "moved":
            continue
        if move.action == "rollback":
            stack.pop()
        else:
            stack.append(move.version)
    return stack


def _way_back(moves: tuple[Move, ...]) -> int | None:
    stack = _stack(moves)
    return stack[-2] if len(stack) > 1 else None


def _read(client: MlflowClient, name: str) -> tuple[Move, ...]:
    tags = client.get_registered_model(name).tags
    entries = (json.loads(value) for key, value in tags.items() if key.startswith(_ENTRY))
    return tuple(sorted((Move(**entry) for entry in entries), key=lambda move: move.number))


def _write(client: MlflowClient, name: str, move: Move) -> None:
    move = replace(move, reason=move.reason[: _TAG_LENGTH // 2])  # JSON may need two characters for one
    client.set_registered_model_tag(name, f"{_ENTRY}{move.number:06}", json.dumps(asdict(move)))


def _set_alias(client: MlflowClient, name: str, alias: str, version: int | None) -> None:
    if version is not None:
        client.set_registered_model_alias(name, alias, str(version))
    elif alias in aliases(client, name):
        client.delete_registered_model_alias(name, alias)


def _holder(client: MlflowClient, name: str, alias: str) -> int | None:
    number = aliases(client, name).get(alias)
    return None if number is None else int(number)


def _words(version: int | None) -> str:
    return "none" if version is None else f"version {version}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
