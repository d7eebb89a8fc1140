"""Two processes that are told at once to replace the same champion, each by a version of its own."""

import subprocess
import sys
from pathlib import Path

from mlflow import MlflowClient

_RACER = """
import sys
from pathlib import Path
from kshot.errors import StageError
from kshot.tracking import champion, move_champion, version_with

champion.smoke_test = lambda version: None  # a hundred loads of a model say nothing more
root, version = Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
for line in sys.stdin:
    try:
        move_champion("toy", root, version=version, expected=int(line), reason="race", by=f"racer {version}")
        print("won", flush=True)
    except StageError:
        print("lost", flush=True)
"""


def race(roots: tuple[Path, Path], client: MlflowClient, n_races: int) -> None:
    """Versions 2 and 3 of `toy`, each from one of the roots, against champion 1: one wins, in each of `n_races`."""
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, str(root), str(version)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for root, version in zip(roots, (2, 3), strict=True)
    ]
    assert [line_of(racer) for racer in racers] == ["ready", "ready"]
    for _ in range(n_races):
        for racer in racers:
            write_line(racer, "1")
        results = {version: line_of(racer) for version, racer in zip((2, 3), racers, strict=True)}
        assert sorted(results.values()) == ["lost", "won"]
        winner = next(version for version, result in results.items() if result == "won")
        assert int(client.get_registered_model("toy").aliases["champion"]) == winner
        client.set_registered_model_alias("toy", "champion", "1")
    for racer in racers:
        racer.communicate(timeout=30)


def write_line(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()
