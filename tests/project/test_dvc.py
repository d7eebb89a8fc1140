"""One stage of dvc.yaml, run with the real DVC."""

import fcntl
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kshot.errors import RejectedStageError, StageError, TransientStageError
from kshot.project.dvc import failure, push, run_dvc, run_stage, stage_order, unchanged_stages
from kshot.runtime.error_file import LeftError
from tests.processes import wait_for_text, wait_until_gone

HEAD = ["Running stage 'fit':", "> python fit.py"]


def test_stages_are_ordered_by_what_they_read_not_by_the_file(workspace: Path) -> None:
    assert stage_order(workspace) == ("check", "fit", "score")


def test_an_unreadable_dvc_yaml_is_named(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: [")
    with pytest.raises(StageError, match=r"cannot read the stages of .*dvc\.yaml"):
        stage_order(tmp_path)


def test_a_stage_runs_once_then_is_cached_and_its_lines_are_heard(checked: Path) -> None:
    heard: list[str] = []
    assert run_stage("fit", checked, heard.append).outcome == "ran"
    assert heard == ["Running stage 'fit':", "> python fit.py", "fitted"]
    assert run_stage("fit", checked, heard.append).outcome == "cached"


def test_one_call_names_the_stages_that_have_nothing_to_do_up_to_the_first_that_has(checked: Path) -> None:
    order = stage_order(checked)
    assert unchanged_stages(order, checked, print) == ("check",)
    run_dvc(["repro"], checked, print, doing="dvc repro")
    assert unchanged_stages(order, checked, print) == order
    (checked / "fit.py").write_text((checked / "fit.py").read_text() + "\n")
    assert unchanged_stages(order, checked, print) == ("check",)  # score has its own turn after fit
    shutil.rmtree(checked / "artifacts/check")
    assert unchanged_stages(order, checked, print) == ()


def test_where_dvc_does_not_answer_no_stage_counts_as_unchanged(checked: Path) -> None:
    (checked / "dvc.lock").write_text("torn: [")
    lines: list[str] = []
    assert unchanged_stages(("check", "fit", "score"), checked, lines.append) == ()
    assert any("dvc.lock" in line for line in lines)


def test_outputs_restored_from_an_earlier_run_count_as_cached(checked: Path) -> None:
    (checked / "input").write_text("2")
    assert run_stage("check", checked, print).outcome == "ran"
    (checked / "input").write_text("1")
    assert run_stage("check", checked, print).outcome == "cached"
    assert (checked / "artifacts/check/facts").read_text() == "1"


def test_a_stage_that_rejects_its_input_says_why_in_its_own_words(checked: Path) -> None:
    (checked / "fit.py").write_text(
        "import sys; from kshot.errors import DataError; from kshot.runtime.error_file import leave_error\n"
        "leave_error(DataError('3 classes; need 5')); print('the last line'); sys.exit(2)"
    )
    with pytest.raises(RejectedStageError, match=r"^fit failed: 3 classes; need 5$"):
        run_stage("fit", checked, print)


def test_a_stage_that_leaves_no_error_is_reported_by_its_exit_code(checked: Path) -> None:
    (checked / "fit.py").write_text("import sys; print('out of ink'); sys.exit(3)")
    with pytest.raises(StageError, match=r"^fit failed: exit code 3; its lines above say why$"):
        run_stage("fit", checked, print)


def test_the_error_of_an_earlier_run_is_not_taken_for_that_of_a_later_one(checked: Path) -> None:
    (checked / "fit.py").write_text(
        "import sys; from kshot.errors import DataError; from kshot.runtime.error_file import leave_error\n"
        "import os; sys.exit(3) if os.path.exists('second') else open('second', 'w').close()\n"
        "leave_error(DataError('first')); sys.exit(2)"
    )
    with pytest.raises(RejectedStageError, match="first"):
        run_stage("fit", checked, print)
    with pytest.raises(StageError, match="exit code 3"):
        run_stage("fit", checked, print)


def test_a_stage_that_is_killed_may_be_tried_again(checked: Path) -> None:
    (checked / "fit.py").write_text("import os; os.kill(os.getpid(), 9)")
    with pytest.raises(TransientStageError, match=r"^fit was stopped by SIGKILL, often because memory ran out"):
        run_stage("fit", checked, print)


DATA_ERROR = LeftError(kind="DataError", message="no", exit_code=2)
FAILED = "ERROR: failed to reproduce 'fit': failed to run: x, exited with"


@pytest.mark.parametrize(
    ("lines", "left", "kind", "message"),
    [
        ([*HEAD, "no", f"{FAILED} 1"], None, StageError, "exit code 1"),
        ([*HEAD, f"{FAILED} 2"], DATA_ERROR, RejectedStageError, "fit failed: no"),
        ([*HEAD, f"{FAILED} 2"], None, RejectedStageError, "exit code 2"),
        (
            [*HEAD, f"{FAILED} 1"],
            LeftError(kind="TransientStageError", message="away", exit_code=1),
            TransientStageError,
            "fit failed: away",
        ),
        ([*HEAD, f"{FAILED} 137"], None, TransientStageError, "SIGKILL"),
        ([*HEAD, f"{FAILED} -15"], DATA_ERROR, TransientStageError, "SIGTERM"),
        (["ERROR: failed to reproduce 'fit': [Errno 2] No such file: 'a'"], None, StageError, "No such file: 'a'"),
        (["ERROR: failed to push: Read timed out"], None, TransientStageError, "timed out"),
        (
            ["ERROR: unexpected error - Please reduce your request rate: SlowDown (503)"],
            None,
            TransientStageError,
            "SlowDown",
        ),
        (
            ["ERROR: unexpected error - Forbidden: An error occurred (403) when calling"],
            None,
            StageError,
            "next: check access_key_id",
        ),
        (["ERROR: Unable to acquire lock."], None, TransientStageError, "lock"),
        ([], None, TransientStageError, "without an error message"),
    ],
)
def test_only_faults_that_may_pass_are_transient(
    lines: list[str], left: LeftError | None, kind: type[StageError], message: str
) -> None:
    error = failure("fit", lines, left)
    assert type(error) is kind
    assert message in str(error)
    assert "\n" not in str(error)


def test_a_stage_waits_for_another_dvc_however_long_that_takes(checked: Path) -> None:
    with (checked / ".dvc/tmp/lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        longer_than_dvc_waits_by_itself = threading.Timer(3.5, fcntl.flock, [lock, fcntl.LOCK_UN])
        longer_than_dvc_waits_by_itself.start()
        assert run_stage("check", checked, print).outcome == "cached"
        longer_than_dvc_waits_by_itself.join()


def test_killing_the_runner_ends_its_stage_and_the_next_run_succeeds(checked: Path) -> None:
    fit = (checked / "fit.py").read_text()
    (checked / "fit.py").write_text(
        "import os, time\nfrom kshot.runtime.lifeline import die_with_pipeline\ndie_with_pipeline()\n"
        "open('pid.new', 'w').write(str(os.getpid())); os.rename('pid.new', 'pid')\ntime.sleep(600)\n"
    )
    runner = "from pathlib import Path; from flows.stage_task import run_stage; run_stage('fit', Path.cwd(), print)"
    with subprocess.Popen([sys.executable, "-c", runner], cwd=checked, stdout=subprocess.DEVNULL) as process:
        stage = int(wait_for_text(checked / "pid"))
        process.send_signal(signal.SIGKILL)
    wait_until_gone(stage)
    (checked / "fit.py").write_text(fit)
    assert run_stage("fit", checked, print).outcome == "ran"


def test_a_push_of_files_that_are_nowhere_is_refused(checked: Path) -> None:
    push(checked, print)
    shutil.rmtree(checked / ".dvc" / "cache" / "files")
    push(checked, print)  # the remote holds them
    shutil.rmtree(checked / ".kshot" / "dvc-remote" / "files")
    with pytest.raises(StageError, match="neither the cache nor the remote holds 2 of the files"):
        push(checked, print)


def test_dvc_other_than_repro_is_heard_without_its_advice(workspace: Path) -> None:
    heard: list[str] = []
    run_dvc(["repro", "check"], workspace, heard.append, doing="dvc repro")
    assert not [line for line in heard if "git add" in line or "dvc push" in line]
