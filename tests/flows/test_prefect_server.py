"""Where a flow started by hand finds its Prefect API."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.prefect_server import prefect_api, running_ui, ui_file
from kshot.project.servers import answers, free_port
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


def test_a_configured_api_is_used_as_it_is(tmp_path: Path) -> None:
    configured = "http://127.0.0.1:1/api"
    with temporary_settings({PREFECT_API_URL: configured}), prefect_api(tmp_path, pytest.fail) as url:
        assert url == configured


def test_pages_that_were_closed_are_not_mistaken_for_a_server(tmp_path: Path) -> None:
    assert running_ui(tmp_path) is None
    ui_file(tmp_path).parent.mkdir()
    for left_behind in (f"http://127.0.0.1:{free_port()}/api\n", "not an address"):
        ui_file(tmp_path).write_text(left_behind)
        assert running_ui(tmp_path) is None


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
