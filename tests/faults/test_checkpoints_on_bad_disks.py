"""Checkpoints that were damaged, cut off at any call to the system, or refused by the disk."""

import builtins
import errno
import io
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kshot.errors import CheckpointError
from kshot.training.checkpoints import CheckpointFolder
from kshot.training.loop import Progress, TrainingState
from tests.faults.full import times

_WRITES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")  # audit events


def state(step: int) -> TrainingState:
    return TrainingState(
        progress=Progress(step=step, best_accuracy=0.75, loss_sum=0.25),
        weights={"a": torch.full((40,), float(step))},
        optimizer={"0.exp_avg": torch.full((20,), step + 0.5), "0.step": torch.tensor(float(step))},
        best_weights={"a": torch.full((40,), step - 1.0)},
    )


def is_whole(found: TrainingState | None, step: int) -> bool:
    expected = state(step)
    return (
        found is not None
        and found.progress == expected.progress
        and all(
            getattr(found, part).keys() == getattr(expected, part).keys()
            and all(torch.equal(tensor, getattr(expected, part)[name]) for name, tensor in getattr(found, part).items())
            for part in ("weights", "optimizer", "best_weights")
        )
    )


def damaged(content: bytes, other: bytes, draw: random.Random) -> bytes | None:
    """The content of a file after some damage; None where the file is gone."""
    position = draw.randrange(len(content))
    match draw.choice(["flip", "cut", "zero tail", "longer", "swapped", "gone", "empty object"]):
        case "flip":
            flipped = content[position] ^ 1 << draw.randrange(8)
            return content[:position] + bytes([flipped]) + content[position + 1 :]
        case "cut":
            return content[:position]
        case "zero tail":
            return content[:position] + bytes(len(content) - position)
        case "longer":
            return content + other[: 1 + position % 64]
        case "swapped":
            return other
        case "empty object":
            return b"{}\n"
    return None


def test_no_damaged_checkpoint_is_accepted(tmp_path: Path) -> None:
    """A file may lose its last line end, which changes nothing; then it is read as it was."""
    folder, draw = CheckpointFolder(tmp_path), random.Random(1)
    folder.save(state(1))
    folder.save(state(2))
    files = sorted((tmp_path / "step-000000002").iterdir())
    contents = {path: path.read_bytes() for path in files}
    n_passed_over = 0
    for _ in range(times(400, 10_000)):
        path, other = draw.sample(files, 2)
        new = damaged(contents[path], contents[other], draw)
        if new is None:
            path.unlink()
        else:
            path.write_bytes(new)
        found = folder.latest()
        unchanged = new is not None and new.rstrip() == contents[path].rstrip()
        assert is_whole(found, 1) or (unchanged and is_whole(found, 2)), (path.name, new)
        n_passed_over += is_whole(found, 1)
        path.write_bytes(contents[path])
    assert n_passed_over > times(350, 9_000)
    assert is_whole(folder.latest(), 2)


def in_a_process_that_ends_at_call(number: int, work: Callable[[], object]) -> bool:
    """Do `work` in a process that is gone before its call `number` to the system; whether it came to its end.

    Before a call to fsync half of the file is lost, as after a crash of the machine.
    """
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status) == 0
    calls = 0

    def count(fd: int | None = None) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            if fd is not None and os.path.isfile(f"/proc/self/fd/{fd}"):
                os.ftruncate(fd, os.fstat(fd).st_size // 2)
            os._exit(9)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _WRITES:
            count()

    fsync = os.fsync

    def counted_fsync(fd: int) -> None:
        count(fd)
        fsync(fd)

    os.fsync = counted_fsync
    sys.addaudithook(watch)
    try:
        work()
    except BaseException:
        os._exit(1)
    os._exit(0)


def test_a_process_that_is_gone_at_any_call_leaves_the_state_before_or_the_new_one(tmp_path: Path) -> None:
    number, ended = 0, False
    seen = set()
    while not ended:
        number += 1
        folder = CheckpointFolder(tmp_path / str(number))
        folder.save(state(1))
        folder.save(state(2))
        ended = in_a_process_that_ends_at_call(number, lambda folder=folder: folder.save(state(3)))
        found = folder.latest()
        assert is_whole(found, 2) or is_whole(found, 3), number
        seen.add(found.progress.step if found else None)
        folder.save(state(4))
        assert is_whole(folder.latest(), 4)
        assert len([path for path in folder.folder.iterdir() if path.name.endswith(".unfinished")]) <= 1
        folder.save(state(3))
        assert not list(folder.folder.glob("*.unfinished"))
    assert number > 12 and seen == {2, 3}


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_refuses_any_write_is_one_line_and_the_state_before_is_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(state(1))
    with monkeypatch.context() as context:
        calls = refuse_call(context, 0, fault)
        CheckpointFolder(tmp_path / "counted").save(state(2))
    n_calls = calls()
    assert n_calls > 10
    for number in range(1, n_calls + 1):
        message = "the one before is intact; next: mend the disk"
        with monkeypatch.context() as context:
            refuse_call(context, number, fault)
            with pytest.raises(CheckpointError, match=message):
                folder.save(state(2))
        found = folder.latest()
        assert is_whole(found, 1) or is_whole(found, 2)
    folder.save(state(2))
    assert is_whole(folder.latest(), 2)


def refuse_call(context: pytest.MonkeyPatch, number: int, fault: int) -> Callable[[], int]:
    """Let the call `number` of all that open a file to write, write to it or sync it fail; how many there were."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            raise OSError(fault, os.strerror(fault))

    class Counted(io.FileIO):
        def write(self, content: Any) -> int:
            count()
            return super().write(content)

    open_file, fsync = builtins.open, os.fsync

    def counted_open(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if "w" not in mode:
            return open_file(file, mode, *arguments, **options)
        count()
        return Counted(file, "w")

    def counted_fsync(fd: int) -> None:
        count()
        fsync(fd)

    context.setattr(io, "open", counted_open)
    context.setattr(os, "fsync", counted_fsync)
    return lambda: calls
