"""Several clones on several machines that share one MLflow server: what is done once is done once."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from kshot.errors import ModelError, StageError
from kshot.tracking import RunRecord, fetch_model, history, move_champion, prepare_store, register, turn
from kshot.tracking.store import open_store
from kshot.tracking.turn import LOCK_PREFIX
from tests.tracking.racers import line_of, race, write_line
from tests.tracking.toy_runs import toy_record
from tests.tracking.tracking_server import Proxy, proxy_to, tracking_server

_CREATE_VERSION = "/api/2.0/mlflow/model-versions/create"
_CREATE_RUN, _UPDATE_RUN = "/api/2.0/mlflow/runs/create", "/api/2.0/mlflow/runs/update"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copyfile(migrated_database, folder / "mlflow.db")
    with tracking_server(f"sqlite:///{folder}/mlflow.db", folder / "files") as url:
        yield url


@pytest.fixture
def client(server: str) -> MlflowClient:
    return MlflowClient(tracking_uri=server)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model of the test's own: all of them share the server."""
    return str(request.node.name)


@pytest.fixture
def record(project: Path, server: str, name: str, monkeypatch: pytest.MonkeyPatch) -> RunRecord:
    """A finished run; `server` is its registry."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    return replace(toy_record(project), model_name=name)


@pytest.fixture
def proxy(server: str, record: RunRecord, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """In front of the server, where `record` is registered by way of it; MLflow's client is patient for no time."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    monkeypatch.setattr(turn, "PAUSES_S", (0.0, None))
    with proxy_to(server) as proxy:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
        yield proxy


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "LEASE_S", 1.5)
    monkeypatch.setattr(turn, "_POLL_EVERY_S", 0.1)


def versions(client: MlflowClient, name: str) -> list[int]:
    return sorted(int(version.version) for version in client.search_model_versions(f"name = '{name}'"))


def runs(client: MlflowClient, name: str) -> list[str]:
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    return sorted(run.info.status for run in client.search_runs([experiment.experiment_id]))


def open_tickets(client: MlflowClient, name: str) -> int:
    return len(client.search_model_versions(f"name = '{LOCK_PREFIX}{name}' AND tags.state = 'open'"))


def clone_of(root: Path) -> Path:
    return Path(shutil.copytree(root, root / "clone", ignore=shutil.ignore_patterns(".kshot", "clone")))


REGISTER_EIGHT_TIMES = """
import os, pickle, sys
from dataclasses import replace
from pathlib import Path
from kshot.tracking import register
record = pickle.loads(Path(sys.argv[1]).read_bytes())
for clone in sys.argv[2:] * 4:
    if os.fork() == 0:
        done = register(replace(record, root=Path(clone)))
        os.write(1, f"{done.version} {done.created}\\n".encode())
        os._exit(0)
for _ in range(8):
    os.wait()
"""


def test_eight_processes_of_two_clones_register_one_run_once(
    record: RunRecord, client: MlflowClient, name: str
) -> None:
    pickled = record.root / "record.pickle"
    pickled.write_bytes(pickle.dumps(record))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REGISTER_EIGHT_TIMES, pickled, record.root, clone_of(record.root)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(done.stdout.splitlines()) == ["1 False"] * 7 + ["1 True"], done.stderr
    assert versions(client, name) == [1]
    assert runs(client, name) == ["FINISHED"]
    assert open_tickets(client, name) == 0


@pytest.mark.usefixtures("smoke_test_here")
def test_of_two_promotions_at_once_from_two_clones_one_wins_and_the_history_has_both(
    record: RunRecord, client: MlflowClient
) -> None:
    record = replace(record, model_name="toy")
    register(record)
    first = client.get_model_version("toy", "1")
    model_id = str(first.source).rpartition("/")[2]
    for _ in range(2):
        client.create_model_version("toy", first.source, first.run_id, tags=first.tags, model_id=model_id)
    move_champion("toy", record.root, version=1, expected=None, reason="first", by="test")
    race((record.root, clone_of(record.root)), client, n_races=20)
    raced = [move for move in history("toy", record.root) if move.action == "promote"][1:]
    assert [move.outcome for move in raced].count("moved") == 20
    assert [move.outcome for move in raced].count("refused") == 20
    assert {move.by for move in raced} == {"racer 2", "racer 3"}


# The holder that does not go on


HOLDER = """
import pickle, sys
from pathlib import Path
from kshot.errors import StageError
from kshot.tracking import register, runs, turn

turn._RENEW_EVERY_S = 0.2
create = runs._the_version
def hold(*arguments):
    print("holds", flush=True)
    sys.stdin.readline()
    return create(*arguments)
runs._the_version = hold
try:
    register(pickle.loads(Path(sys.argv[1]).read_bytes()))
except StageError as error:
    print(error, flush=True)
"""


@contextmanager
def holder_of_the_turn(record: RunRecord) -> Iterator[subprocess.Popen[str]]:
    """A process that registers the run, and has everything but the version, which it makes when it reads a line."""
    pickled = record.root / "record.pickle"
    pickled.write_bytes(pickle.dumps(record))
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", HOLDER, pickled],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert line_of(process) == "holds"
            yield process
        finally:
            process.kill()


@pytest.mark.usefixtures("short_lease")
def test_after_the_holder_was_killed_the_next_one_goes_on_and_nothing_is_doubled(
    record: RunRecord, client: MlflowClient, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with holder_of_the_turn(record) as holder:
        holder.kill()
        done = register(record)
        assert f"process {holder.pid} for 2 s: going on without it" in capsys.readouterr().err
    assert (done.version, done.created, done.alias) == (1, True, "challenger")
    assert versions(client, name) == [1]
    assert runs(client, name) == ["FINISHED"], "the run of the one that was killed is used"


@pytest.mark.usefixtures("short_lease")
def test_a_holder_that_was_stopped_for_longer_than_its_lease_does_not_write(
    record: RunRecord, client: MlflowClient, name: str
) -> None:
    with holder_of_the_turn(record) as holder:
        holder.send_signal(signal.SIGSTOP)
        assert register(record).created
        holder.send_signal(signal.SIGCONT)
        write_line(holder, "go on")
        assert line_of(holder) == (
            f"this process was not heard of for 30 s, and lost its turn to change {name} in the registry; "
            "need it to write; next: run this again"
        )
    assert versions(client, name) == [1]


@pytest.mark.usefixtures("short_lease")
def test_a_holder_that_works_for_longer_than_a_lease_keeps_its_turn(
    record: RunRecord, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kshot.tracking.store._LOCK_TIMEOUT_S", 4.0)
    monkeypatch.setattr(turn, "_REPORT_EVERY_S", 0.1)
    with (
        holder_of_the_turn(record) as holder,
        pytest.raises(StageError, match=rf"process {holder.pid} changed .* in the registry for 4 s; need it done; "),
    ):
        register(record)
    reported = capsys.readouterr().err
    assert f"process {holder.pid}, which changes {record.model_name} in the registry\n" in reported
    assert "going on without it" not in reported


WRITES: dict[str, Callable[[MlflowClient, str], object]] = {
    "version": lambda client, name: client.create_model_version(name, "s3://none/none"),
    "deletion": lambda client, name: client.delete_model_version(name, "1"),
    "tag of a version": lambda client, name: client.set_model_version_tag(name, "1", "key", "value"),
    "tag": lambda client, name: client.set_registered_model_tag(name, "key", "value"),
    "alias": lambda client, name: client.set_registered_model_alias(name, "champion", "1"),
    "no alias": lambda client, name: client.delete_registered_model_alias(name, "champion"),
    "end of a run": lambda client, name: client.set_terminated("none", "FAILED"),
}


def test_who_lost_its_turn_writes_nothing(record: RunRecord, client: MlflowClient, name: str) -> None:
    client.create_registered_model(name)
    with open_store(record.root, change=name) as changing:
        [ticket] = client.search_model_versions(f"name = '{LOCK_PREFIX}{name}'")
        client.set_model_version_tag(ticket.name, ticket.version, "state", "ended")
        for write in WRITES.values():
            with pytest.raises(StageError, match="lost its turn to change"):
                write(changing, name)
    assert versions(client, name) == []
    assert not client.get_registered_model(name).aliases
    assert not client.get_registered_model(name).tags


def test_a_version_that_slipped_in_beside_an_earlier_one_is_taken_back(
    record: RunRecord, client: MlflowClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a process that was stopped between the check of its turn and the request."""
    create = MlflowClient.create_model_version

    def created_by_another_first(self: MlflowClient, model: str, *arguments: object, **keywords: object) -> object:
        if model == name:
            create(client, model, *arguments, **keywords)
        return create(self, model, *arguments, **keywords)

    monkeypatch.setattr(MlflowClient, "create_model_version", created_by_another_first)
    assert register(record).version == 1
    assert versions(client, name) == [1]


# A server that fails


def test_a_version_is_made_once_though_the_answer_to_its_creation_is_lost(
    record: RunRecord, client: MlflowClient, name: str, proxy: Proxy
) -> None:
    proxy.loses = {_CREATE_VERSION: 2}  # of the ticket, and of the version
    assert register(record).version == 1
    assert proxy.loses == {_CREATE_VERSION: 0}
    assert versions(client, name) == [1]
    assert open_tickets(client, name) == 0
    assert versions(client, LOCK_PREFIX + name) == [1]


def test_a_run_whose_creation_was_answered_by_nothing_is_closed(
    record: RunRecord, client: MlflowClient, name: str, proxy: Proxy
) -> None:
    proxy.loses = {_CREATE_RUN: 1}
    assert register(record).created
    assert runs(client, name) == ["FAILED", "FINISHED"]


def test_a_server_that_is_down_is_one_line_and_the_same_call_registers_once_it_is_up(
    record: RunRecord, client: MlflowClient, name: str, proxy: Proxy
) -> None:
    proxy.down = True
    with pytest.raises(StageError, match=r"^MLFLOW_TRACKING_URI is .*: it hangs up without an answer; need an MLflow"):
        register(record)
    proxy.down = False
    assert register(record).created
    assert not register(record).created
    assert versions(client, name) == [1]


@pytest.mark.parametrize(
    "last",
    [_CREATE_RUN, "/api/2.0/mlflow/runs/update", _CREATE_VERSION],
    ids=["in the run", "after it", "in the queue"],
)
def test_a_server_that_goes_down_meanwhile_is_one_line_and_the_same_call_registers_once_it_is_up(
    record: RunRecord, client: MlflowClient, name: str, proxy: Proxy, last: str
) -> None:
    register(replace(record, dvc_lock_sha256="0" * 64))
    proxy.down_after = last
    with pytest.raises(StageError, match=r"^MLFLOW_TRACKING_URI is .*: it hangs up without an answer; need an MLflow"):
        register(record)
    proxy.down, proxy.down_after = False, ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turn, "LEASE_S", 0.3)  # the ticket of the first call could not be ended
        assert register(record).version == 2
    assert versions(client, name) == [1, 2]
    assert runs(client, name).count("FINISHED") == 2
    assert "RUNNING" not in runs(client, name)


# Looking


@pytest.mark.usefixtures("smoke_test_here")
def test_who_only_looks_waits_for_nobody_and_draws_no_ticket(
    record: RunRecord, client: MlflowClient, name: str
) -> None:
    register(record)
    move_champion(name, record.root, version=1, expected=None, reason="first", by="test")
    with open_store(record.root, change=name):
        n_tickets = len(versions(client, LOCK_PREFIX + name))
        assert fetch_model(f"models:/{name}@champion", record.root).version == 1
        assert [move.version for move in history(name, record.root)] == [1]
        assert len(versions(client, LOCK_PREFIX + name)) == n_tickets


def test_a_lock_is_never_named_as_a_model(record: RunRecord) -> None:
    register(record)
    with pytest.raises(ModelError, match=r"known: .*; next") as refused:
        fetch_model("models:/none/1", record.root)
    assert LOCK_PREFIX not in str(refused.value)
    with pytest.raises(ModelError, match="no registered model 'none'"):
        move_champion("none", record.root, version=1, expected=None, reason="", by="test")


COUNT_IN_TURN = """
import os, sys
from pathlib import Path
from kshot.tracking.store import open_store
counter = Path(sys.argv[1])
for _ in range(8):
    if os.fork() == 0:
        for _ in range(4):
            with open_store(counter.parent, change="counted"):
                number = int(counter.read_text())
                os.sched_yield()
                counter.write_text(str(number + 1))
        os._exit(0)
sys.exit(max(os.wait()[1] for _ in range(8)) and 1)
"""


def test_eight_processes_take_turns_on_a_server_on_postgresql(
    postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its transactions see one another otherwise than those of SQLite."""
    prepare_store(tmp_path, postgresql)
    counter = tmp_path / "counter"
    counter.write_text("0")
    with tracking_server(postgresql, tmp_path / "files") as url:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", COUNT_IN_TURN, counter],
            env=os.environ | {"MLFLOW_TRACKING_URI": url},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert counter.read_text() == "32"
