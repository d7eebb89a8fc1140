"""Whether a server answers, in what words it does not, and that no proxy is asked for one of this machine."""

import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import pytest

from kshot import servers
from kshot.servers import answers, keep_own_addresses_off_proxies, proxy_for, silence, why_silent
from tests.fake_servers import NOBODY, answering, black_hole

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, "NO_PROXY"):
        for spelled in (name, name.lower()):
            monkeypatch.delenv(spelled, raising=False)
    monkeypatch.setattr(servers, "PATIENCE_S", 0.2)


def test_a_server_that_answers_is_not_silent_even_where_it_asks_for_a_key() -> None:
    for status in (200, 401, 403, 404):
        with answering(status) as url:
            assert silence(url) == ""


@pytest.mark.parametrize("status", [500, 502, 503])
def test_an_error_of_a_server_is_named(status: int) -> None:
    with answering(status) as url:
        assert silence(url).startswith(f"it answers {status}")


def test_a_page_that_has_to_be_there_is_missed() -> None:
    with answering(404) as url:
        assert silence(f"{url}/health", is_page=True) == "it answers 404 Not Found"


def test_silence_is_put_into_words() -> None:
    assert silence(NOBODY) == "nothing listens there"
    assert silence("http://no.such.host.invalid:80") == "no machine of that name is known"
    with black_hole() as url:
        assert silence(url) == "no answer in 0 s"
    with answering(200) as url:
        assert silence(url.replace("http", "https")) == "it does not speak https"


def test_the_cause_is_found_behind_the_errors_of_clients() -> None:
    error = RuntimeError("pages of trace")
    error.__cause__ = URLError(ConnectionRefusedError(111, "refused"))
    assert why_silent(error) == "nothing listens there"
    assert why_silent(RuntimeError("first\nsecond")) == "first"
    assert why_silent(RuntimeError()) == "RuntimeError"


@pytest.mark.parametrize("spell", [str.upper, str.lower])
def test_no_proxy_is_asked_for_a_server_of_this_machine(
    spell: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PROXIES:
        monkeypatch.setenv(spell(name), NOBODY)
    monkeypatch.setenv(spell("NO_PROXY"), "intranet.example, 10.0.0.1")
    keep_own_addresses_off_proxies()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "intranet.example,10.0.0.1,127.0.0.1,localhost,::1"
    keep_own_addresses_off_proxies()
    assert os.environ["NO_PROXY"] == "intranet.example,10.0.0.1,127.0.0.1,localhost,::1"
    with answering(200) as url:
        assert silence(url) == "" and answers(url)
    assert all(urllib.request.proxy_bypass(host) for host in ("127.0.0.1", "localhost", "::1", "intranet.example"))
    assert not urllib.request.proxy_bypass("kshot.example")


def test_without_proxies_and_with_none_for_any_address_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_own_addresses_off_proxies()
    assert "NO_PROXY" not in os.environ
    monkeypatch.setenv("HTTP_PROXY", NOBODY)
    monkeypatch.setenv("NO_PROXY", "*")
    keep_own_addresses_off_proxies()
    assert os.environ["NO_PROXY"] == "*"


def test_the_proxy_of_an_address_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    assert proxy_for("http://kshot.example/api") == ""
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:9")
    words = proxy_for("http://kshot.example/api")
    assert words == " by way of the proxy http://127.0.0.1:9, which NO_PROXY=kshot.example would leave out"


@pytest.mark.parametrize("module", ["flows", "kshot.cli.app"])
def test_the_commands_settle_it_before_a_client_is_made(module: str, tmp_path: Path) -> None:
    code = f"import os, {module}; print(os.environ['NO_PROXY'])"
    environment = {**os.environ, "HTTP_PROXY": NOBODY, "PREFECT_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "127.0.0.1,localhost,::1\n"
