"""dvc.lock as the receipt of a run: the settings, code, data and outputs that belong together."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from kshot.config import Params, params_from
from kshot.errors import StageError
from kshot.project.dvc import stage_order
from kshot.project.dvc_answers import changed_since_lock
from kshot.tracking import flatten
from kshot.workspace import Workspace
from kshot.yaml_file import read_yaml

NEXT = "next: make demo, or python -m flows.train"


def check_receipt(root: Path, params: Params) -> None:
    """Raise StageError unless settings, code, data and outputs in `root` are those that dvc.lock records."""
    needed = _needed_stages(root, item_stages(params.cross_domain, params.seeds))
    stages = _current_stages(read_yaml(Workspace(root).receipt), needed)
    missing = [name for name in needed if name not in stages]
    if missing:
        raise StageError(f"dvc.lock has no stage {', '.join(missing)}; need {', '.join(needed)}; {NEXT}")
    _check_settings(params, stages)
    changed = changed_since_lock(root, needed)
    if changed:
        more = f" ({len(changed)} such in all)" if len(changed) > 1 else ""
        advice = "next: dvc fetch" if changed[0].state == "not in cache" else NEXT
        raise StageError(f"{changed[0]}{more}; need it as dvc.lock records it; {advice}")


def check_recorded_bytes(root: Path) -> int:
    """The number of files and folders that dvc.lock names. StageError unless each is in `root` as it was recorded."""
    lock, params = read_yaml(Workspace(root).receipt), read_yaml(Workspace(root).params)
    items = item_stages(params.get("cross_domain") or (), params.get("seeds") or ())
    stages = _current_stages(lock, _needed_stages(root, items))
    changed = changed_since_lock(root, tuple(stages))
    if changed:
        raise StageError(
            f"{changed[0]} ({len(changed)} such in all); need the recorded bytes; "
            "next: dvc push, where the version was made"
        )
    return sum(len(entry.get("deps", ())) + len(entry.get("outs", ())) for entry in stages.values())


def _needed_stages(root: Path, items: Iterable[str]) -> tuple[str, ...]:
    """Every stage that dvc.yaml has, with those of the items that params.yaml lists."""
    return tuple(dict.fromkeys((*stage_order(root), *items)))


def _current_stages(lock: Mapping[str, Any], needed: Iterable[str]) -> dict[str, Any]:
    """The entries of dvc.lock without those that are no more, such as a seed that params.yaml listed once."""
    entries: dict[str, Any] = lock.get("stages", {})
    return {name: entries[name] for name in needed if name in entries}


def item_stages(cross_domain: Iterable[str], seeds: Iterable[int]) -> list[str]:
    """The stages that dvc.yaml has once for each item of a list in params.yaml."""
    return [*(f"cross_domain@{name}" for name in cross_domain), *(f"seeds@{seed}" for seed in seeds)]


def plain(params: Params) -> dict[str, Any]:
    """The settings, defaults too, as nested dictionaries of JSON values."""
    settings: dict[str, Any] = TypeAdapter(Params).dump_python(params, mode="json")
    return settings


def _check_settings(params: Params, stages: Mapping[str, Any]) -> None:
    locked = plain(params)
    for entry in stages.values():
        for key, value in entry.get("params", {}).get("params.yaml", {}).items():
            _put(locked, key.split("."), value)
    now, then = flatten(plain(params)), flatten(plain(params_from(locked, source="dvc.lock")))
    changed = sorted(key for key in now.keys() | then.keys() if now.get(key) != then.get(key))
    if changed:
        raise StageError(
            f"params.yaml has {changed[0]} = {now.get(changed[0])}; this run was made with {then.get(changed[0])}; "
            f"need them equal; {NEXT}"
        )


def _put(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value
