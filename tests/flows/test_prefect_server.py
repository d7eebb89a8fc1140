"""Where a flow started by hand finds its Prefect API."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.prefect_server import prefect_api, running_ui, running_ui_noted
from kshot.errors import StageError
from kshot.servers import answers, free_port
from tests.fake_servers import NOBODY, answering
from tests.processes import wait_for_text

REPOSITORY = Path(__file__).parents[2]
HOLDER = """
import time
from pathlib import Path
from flows import prefect_server
with prefect_server.prefect_api(Path.cwd(), print) as url:
    Path("new").write_text(url)
    Path("new").rename("url")
    time.sleep(600)
"""


def _environment(**more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {**clean, "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY)]), **more}


@pytest.mark.usefixtures("prefect_server")
def test_a_configured_api_is_used_as_it_is(tmp_path: Path) -> None:
    with prefect_api(tmp_path, pytest.fail) as url:
        assert url == PREFECT_API_URL.value()


@pytest.mark.parametrize(
    ("status", "words"), [(200, "a page of something else"), (401, "401 Unauth"), (502, "502 Bad")]
)
def test_a_configured_address_of_something_else_is_one_line(status: int, words: str, tmp_path: Path) -> None:
    with (
        answering(status) as url,
        temporary_settings({PREFECT_API_URL: f"{url}/api"}),
        pytest.raises(
            StageError, match=rf"^PREFECT_API_URL is {url}/api: it answers.*{words}.*; need a Prefect API; next: "
        ),
        prefect_api(tmp_path, print),
    ):
        pass


def test_a_configured_api_that_does_not_answer_ends_the_command_with_one_line(tmp_path: Path) -> None:
    for module in ("train", "promote"):
        done = subprocess.run(
            [sys.executable, "-m", f"flows.{module}"],
            cwd=tmp_path,
            env=_environment(PREFECT_API_URL=f"{NOBODY}/api"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr, done.stdout.count("\n")) == (1, "", 1)
        assert done.stdout.startswith(f"error: PREFECT_API_URL is {NOBODY}/api: nothing listens there; ")


def test_pages_that_were_closed_are_not_mistaken_for_a_server(tmp_path: Path) -> None:
    assert running_ui(tmp_path) is None
    (tmp_path / ".kshot").mkdir()
    for left_behind in (f"http://127.0.0.1:{free_port()}/api\n{tmp_path}", f"not an address\n{tmp_path}", ""):
        (tmp_path / ".kshot" / "prefect-ui.url").write_text(left_behind)
        assert running_ui(tmp_path) is None


@pytest.mark.usefixtures("prefect_server")
def test_pages_are_those_of_their_project_and_of_no_copy_of_it(tmp_path: Path) -> None:
    (tmp_path / "original" / ".kshot").mkdir(parents=True)
    with running_ui_noted(tmp_path / "original", str(PREFECT_API_URL.value())):
        shutil.copytree(tmp_path / "original", tmp_path / "copy")
        assert running_ui(tmp_path / "original") == PREFECT_API_URL.value()
        assert running_ui(tmp_path / "copy") is None
    assert running_ui(tmp_path / "original") is None


def test_a_temporary_server_ends_with_a_killed_flow(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER], cwd=tmp_path, env=_environment()) as flow:
        health = wait_for_text(tmp_path / "url") + "/health"
        assert answers(health)
        flow.kill()
    while answers(health):
        time.sleep(0.05)


@pytest.mark.usefixtures("prefect_server")
def test_a_flow_that_fails_says_so_in_one_line_and_by_its_exit_code(tmp_path: Path) -> None:
    api = str(PREFECT_API_URL.value())
    assert answers(f"{api}/health")
    done = subprocess.run(
        [sys.executable, "-m", "flows.train"],
        cwd=tmp_path,
        env=_environment(PREFECT_API_URL=api),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout.startswith("error: no ") and "need a params file" in done.stdout
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
