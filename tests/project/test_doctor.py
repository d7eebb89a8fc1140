import shutil
import socket
import sqlite3
from collections.abc import Iterator
from importlib.metadata import metadata, version
from pathlib import Path

import pytest

from kshot.project import doctor
from kshot.project.doctor import Finding, checks
from tests.fake_servers import NOBODY, answering

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with nothing in it but params.yaml and a lock of one package, and no variable set."""
    for name in ("KSHOT_OMNIGLOT", "MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)
    shutil.copyfile(REPOSITORY / "params.yaml", tmp_path / "params.yaml")
    lock(tmp_path, f"torch=={version('torch').partition('+')[0]}")
    return tmp_path


@pytest.fixture
def listening() -> Iterator[str]:
    """Host and port of something that accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def lock(root: Path, *lines: str) -> None:
    text = "# made by a tool\n" + "".join(f"{line} \\\n    --hash=sha256:{'0' * 64}\n" for line in lines)
    (root / "requirements.lock").write_text(text)


def check(root: Path, name: str) -> Finding:
    [found] = [one for one in checks(root) if one.name == name]
    return found


def remote(root: Path, text: str, file: str = "config") -> None:
    (root / ".dvc").mkdir(exist_ok=True)
    (root / ".dvc" / file).write_text(text)


def test_every_failed_check_says_what_to_do(tmp_path: Path) -> None:
    found = checks(tmp_path)
    assert len({one.name for one in found}) == len(found)
    assert all(one.found and one.needed for one in found)
    assert all(bool(one.fix) != one.ok for one in found)
    assert {one.name for one in found if not one.ok} >= {"packages", "git", "params", "data", "dvc remote"}


def test_locked_packages_are_compared_with_the_installed_ones(folder: Path) -> None:
    assert check(folder, "packages") == Finding(
        name="packages", ok=True, found="1 of 1 as locked", needed="every package at the version in requirements.lock"
    )


def test_missing_and_different_packages_are_named(folder: Path) -> None:
    lock(folder, "torch==0.1", "no-such-package==1.0", 'only-elsewhere==1.0 ; sys_platform == "plan9"')
    found = check(folder, "packages")
    assert not found.ok
    installed = version("torch").partition("+")[0]
    assert found.found == f"0 of 2 as locked; torch {installed} (lock: 0.1), no-such-package missing (lock: 1.0)"
    assert found.fix == "pip install --require-hashes -r requirements.lock"


def test_torch_and_torchvision_of_this_environment_fit(folder: Path) -> None:
    assert check(folder, "torch and torchvision").ok


def test_torchvision_of_another_torch_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requires", lambda package: ["numpy", "torch==0.1"])
    found = check(folder, "torch and torchvision")
    assert not found.ok
    assert version("torchvision") in found.found


def test_params_are_read_and_a_wrong_key_is_named(folder: Path) -> None:
    assert check(folder, "params").found == "protonet on conv4, data glyphs"
    (folder / "params.yaml").write_text((folder / "params.yaml").read_text() + "sed: 2\n")
    found = check(folder, "params")
    assert not found.ok
    assert "unknown key sed; did you mean seed?" in found.found


def test_data_that_params_name_must_be_there(folder: Path) -> None:
    (folder / "data" / "defects").mkdir(parents=True)
    (folder / "data" / "defects" / "dataset.json").write_text("{}")
    found = check(folder, "data")
    assert (found.ok, found.found) == (False, "data/: defects")
    assert found.fix == "dvc pull, or kshot ingest PATH --name glyphs"
    (folder / "data" / "defects").rename(folder / "data" / "glyphs")
    assert check(folder, "data").ok


def test_local_remote_is_resolved_from_the_config_folder(folder: Path) -> None:
    remote(folder, "[core]\n    remote = local\n['remote \"local\"']\n    url = ../.kshot/dvc-remote\n")
    found = check(folder, "dvc remote")
    assert (found.ok, found.found) == (True, f"{folder}/.kshot/dvc-remote (made by the first push)")


def test_local_settings_of_the_remote_go_before_the_shared_ones(folder: Path) -> None:
    remote(folder, "[core]\n    remote = s3\n['remote \"s3\"']\n    url = s3://shared\n")
    remote(folder, "['remote \"s3\"']\n    url = s3://mine\n", file="config.local")
    assert check(folder, "dvc remote").found == "s3://mine (not contacted)"


def test_s3_server_of_the_remote_must_answer(folder: Path) -> None:
    text = "[core]\n    remote = s3\n['remote \"s3\"']\n    url = s3://kshot\n    endpointurl = {}\n"
    with answering(403) as url:
        remote(folder, text.format(url))
        assert check(folder, "dvc remote").ok
    remote(folder, text.format(NOBODY))
    found = check(folder, "dvc remote")
    assert (found.ok, found.found) == (False, f"s3://kshot at {NOBODY}: nothing listens there")


def test_settings_that_dvc_cannot_read_are_found(folder: Path) -> None:
    remote(folder, "[broken")
    found = check(folder, "dvc remote")
    assert not found.ok
    assert "dvc config --list failed: configuration error" in found.found
    assert found.fix == "correct .dvc/config and .dvc/config.local"


def test_remote_without_settings_counts_as_none(folder: Path) -> None:
    remote(folder, "[core]\n    remote = gone\n")
    assert check(folder, "dvc remote").found == "none configured"


def test_omniglot_variable_must_name_a_folder_with_both_archives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(folder, "KSHOT_OMNIGLOT").ok
    monkeypatch.setenv("KSHOT_OMNIGLOT", str(folder))
    (folder / "images_background.zip").touch()
    found = check(folder, "KSHOT_OMNIGLOT")
    assert (found.ok, found.found) == (False, f"{folder} without images_evaluation.zip")
    (folder / "images_evaluation.zip").touch()
    assert check(folder, "KSHOT_OMNIGLOT").ok


def test_store_is_made_by_the_first_run(folder: Path) -> None:
    found = check(folder, "MLflow store")
    assert (found.ok, found.found) == (True, f"{folder}/.kshot/mlflow.db (made by the first run)")
    assert not (folder / ".kshot").exists()


def test_damaged_store_is_found(folder: Path) -> None:
    database = folder / ".kshot" / "prefect" / "prefect.db"
    database.parent.mkdir(parents=True)
    database.write_bytes(b"not a database" * 100)
    found = check(folder, "Prefect store")
    assert not found.ok
    assert "file is not a database" in found.found


def test_intact_store_is_accepted(folder: Path) -> None:
    (folder / ".kshot").mkdir()
    with sqlite3.connect(folder / ".kshot" / "mlflow.db") as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
    connection.close()
    assert check(folder, "MLflow store").found == f"{folder}/.kshot/mlflow.db"


def test_tracking_server_must_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(200) as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        assert check(folder, "MLflow store").ok
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url.replace("http", "https"))
        assert check(folder, "MLflow store").found == f"{url.replace('http', 'https')}: it does not speak https"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOBODY.replace("://", "://me:secret@"))
    found = check(folder, "MLflow store")
    assert (found.ok, found.found) == (False, f"{NOBODY}: nothing listens there")


def test_database_server_must_be_there(folder: Path, listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://me:secret@{listening}/kshot")
    assert check(folder, "MLflow store").ok
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@127.0.0.1:9/kshot")
    assert check(folder, "MLflow store").found == "postgresql://127.0.0.1:9/kshot: nothing listens there"


def test_python_outside_the_supported_versions_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.python_version", lambda: "3.10.2")
    found = check(folder, "python")
    assert (found.ok, found.found, found.needed) == (False, "3.10.2", metadata("kshot")["Requires-Python"])


def test_full_disk_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2**30}))
    assert check(folder, "disk").found == "1.0 GiB free"
    assert not check(folder, "disk").ok


def test_gpu_is_optional_but_needs_a_torch_that_can_use_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_output", lambda *command: "")
    assert check(folder, "gpu").found == "none; training runs on the CPU"
    assert check(folder, "gpu").ok
    monkeypatch.setattr(doctor, "_output", lambda *command: "NVIDIA H200")
    monkeypatch.setattr(doctor, "version", lambda package: "2.14.1+cpu")
    found = check(folder, "gpu")
    assert (found.ok, found.found) == (False, "NVIDIA H200, but torch is built for the CPU only")


def test_package_that_cannot_be_imported_does_not_end_the_checks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "kshot.config", None)
    found = check(folder, "params")
    assert not found.ok
    assert found.found.startswith("not read: import of kshot.config halted")


def test_a_clone_with_the_environment_of_another_is_found(folder: Path) -> None:
    assert check(folder, "source").ok
    (folder / "src" / "kshot").mkdir(parents=True)
    (folder / "dvc.yaml").touch()
    found = check(folder, "source")
    assert (found.ok, found.fix) == (False, f"make -C {folder} setup")
    assert found.found.endswith(f"and {folder} has its own source")
