"""One host's part of a training over several: who leads, who waits, and what is refused."""

import shutil
import socket
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from torch.distributed import TCPStore

from infra.host_stage import lead, main, run, wait_for_leader
from kshot.config import load_params
from kshot.errors import ConfigError, StageError, TransientStageError
from kshot.servers import free_port
from tests.conftest import REPOSITORY
from tests.tiny_project import tiny_params

STAGES = ("validate", "task_pool", "pretrain", "pseudo_labels", "meta_train")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with real git and DVC, whose stages write their names."""
    root = tmp_path / "project"
    shutil.copytree(REPOSITORY / ".dvc", root / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache", "config.local*"))
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    stages = {
        name: {
            "cmd": f"echo {name} > {name}.txt",
            "outs": [f"{name}.txt"],
            **({"deps": [f"{before}.txt"]} if before else {}),
        }
        for name, before in zip(STAGES, (None, *STAGES), strict=False)
    }
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    set_params(root)
    for name in ("KSHOT_RENDEZVOUS", "KSHOT_HOST_RANK", "KSHOT_HOST_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return root


def set_params(root: Path, n_hosts: int = 2, pretrain: str = "none") -> None:
    params = tiny_params()
    params["process"]["n_hosts"] = n_hosts
    params["pretrain"] = {"name": pretrain} if pretrain == "none" else {"name": pretrain, "n_steps": 2}
    (root / "params.yaml").write_text(yaml.safe_dump(params))


def test_the_first_host_runs_what_comes_before_and_the_stage_itself_with_a_receipt(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSHOT_RENDEZVOUS", "127.0.0.1:29400")
    monkeypatch.setenv("KSHOT_HOST_RANK", "0")
    lines: list[str] = []
    assert run("meta_train", project, lines.append) == 0
    assert yaml.safe_load((project / "dvc.lock").read_text())["stages"].keys() == set(STAGES)
    assert "meta_train: ran" in lines
    lines.clear()
    assert run("meta_train", project, lines.append) == 0
    assert [line for line in lines if line.endswith(": cached")] == [f"{name}: cached" for name in STAGES]


def test_a_pretraining_that_is_still_to_do_is_asked_for_first(project: Path) -> None:
    set_params(project, pretrain="supervised")
    params = load_params(project / "params.yaml")
    with pytest.raises(
        StageError, match="pretrain is not up to date; need it before meta_train; next: run STAGE=pretrain"
    ):
        lead("meta_train", params, project, print)
    lead("pretrain", params, project, print)
    lead("meta_train", params, project, print)
    assert (project / "meta_train.txt").exists()


def test_a_training_on_one_host_is_refused_with_the_code_that_is_not_tried_again(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_params(project, n_hosts=1)
    monkeypatch.chdir(project)
    assert main(["meta_train"]) == 2
    assert "process.n_hosts is 1 in params.yaml; need as many as there are hosts" in capsys.readouterr().err


def test_a_stage_that_does_not_train_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSHOT_RENDEZVOUS", "127.0.0.1:29400")
    monkeypatch.setenv("KSHOT_HOST_RANK", "1")
    with pytest.raises(ConfigError, match="found the stage 'task_pool'; need one that trains: pretrain, meta_train"):
        run("task_pool", project, print)


def test_a_host_waits_for_the_first_one_and_leaves_its_store_usable() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with pytest.raises(TransientStageError, match="nothing listened at .* for 0 s; need the first host"):
            wait_for_leader(f"127.0.0.1:{nobody.getsockname()[1]}", print, patience_s=0)
    port = free_port()
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))
    wait_for_leader(f"127.0.0.1:{port}", print)
    other = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=10))
    other.set("key", "value")
    assert store.get("key") == b"value"


def test_a_name_that_is_not_known_yet_is_waited_for() -> None:
    with pytest.raises(TransientStageError, match="nothing listened at hosts-0.invalid:29400"):
        wait_for_leader("hosts-0.invalid:29400", print, patience_s=0)
