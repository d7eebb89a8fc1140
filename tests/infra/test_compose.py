"""infra/compose.yaml: valid, closed as far as it can be, started in order, and without a secret in it."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from mlflow.server.security_utils import get_allowed_hosts_from_env, is_allowed_host_header
from prefect.settings import get_current_settings

from infra.make_buckets import buckets
from kshot.errors import ConfigError
from tests.conftest import REPOSITORY

INFRA = REPOSITORY / "infra"
FILES = (INFRA / "compose.yaml", INFRA / "compose.gpu.yaml")
COMPOSE: dict[str, Any] = yaml.safe_load(FILES[0].read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ONE_OFFS = {"buckets", "project", "deployments"}
SECRETS = set(re.findall(r"^([A-Z0-9_]+)=", (INFRA / "make_secrets.sh").read_text(encoding="utf-8"), flags=re.M))

every_service = pytest.mark.parametrize("name", SERVICES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_file_is_what_compose_understands(file: Path) -> None:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    schema = get_builtin_schema("vendor.compose-spec")
    validator = jsonschema.validators.validator_for(schema)(schema)
    assert [error.message for error in validator.iter_errors(content)] == []


def test_a_misspelt_key_is_found() -> None:
    schema = get_builtin_schema("vendor.compose-spec")
    wrong = {"services": {"one": {"image": "kshot:0.1.0", "reed_only": True}}}
    assert not jsonschema.validators.validator_for(schema)(schema).is_valid(wrong)


@every_service
def test_a_service_may_do_no_more_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"]), "not root"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"cpus", "memory", "pids"} == service["deploy"]["resources"]["limits"].keys()
    assert "privileged" not in service and "network_mode" not in service


@every_service
def test_an_image_is_named_by_a_tag_that_does_not_move(name: str) -> None:
    image = re.sub(r"^\$\{\w+:-(.+)\}$", r"\1", SERVICES[name]["image"])
    assert re.fullmatch(r"[\w./-]+:\d[\w.-]*", image)


@every_service
def test_a_service_is_reached_from_this_machine_only(name: str) -> None:
    for port in SERVICES[name].get("ports", ()):
        assert port.startswith("127.0.0.1:")


def test_the_database_has_no_way_out() -> None:
    assert SERVICES["postgres"]["networks"] == ["databases"]
    assert COMPOSE["networks"]["databases"] == {"internal": True}
    assert "ports" not in SERVICES["postgres"]


@every_service
def test_a_service_is_healthy_or_ends(name: str) -> None:
    service = SERVICES[name]
    if name in ONE_OFFS:
        assert service["restart"] == "no" and "healthcheck" not in service
    else:
        assert service["restart"] == "unless-stopped" and service["healthcheck"]["test"][0] == "CMD"


@every_service
def test_a_service_waits_for_servers_to_be_healthy_and_for_one_offs_to_be_done(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        needed = "service_completed_successfully" if other in ONE_OFFS else "service_healthy"
        assert how == {"condition": needed}, other


def test_the_first_services_wait_for_nothing_and_the_worker_for_all() -> None:
    def before(name: str) -> set[str]:
        direct = set(SERVICES[name].get("depends_on", ()))
        return direct | {further for other in direct for further in before(other)}

    assert before("worker") == SERVICES.keys() - {"worker"}


def test_every_named_volume_and_network_is_declared_and_used() -> None:
    mounted = {str(volume).partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}
    assert {name for name in mounted if not name.startswith(".")} == COMPOSE["volumes"].keys()
    assert {name for service in SERVICES.values() for name in service["networks"]} == COMPOSE["networks"].keys()


def test_every_file_that_is_mounted_exists() -> None:
    mounted = {str(volume).partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())}
    assert [name for name in mounted if name.startswith(".") and not (INFRA / name).exists()] == []


def test_no_secret_stands_in_the_file_and_each_is_asked_for() -> None:
    text = FILES[0].read_text(encoding="utf-8")
    asked = set(re.findall(r"\$\{(\w+):\?sh infra/make_secrets\.sh infra/secrets\.env\}", text))
    assert asked == SECRETS
    secret = re.compile(r"PASSWORD|SECRET|AUTH_STRING|AUTH_KEY|ACCESS_KEY")
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            assert not secret.search(key) or re.search(r"\$\{\w+:\?", value), f"{name}: {key}"


def test_mlflow_answers_to_the_names_that_it_is_called_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", SERVICES["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"])
    called = [SERVICES["worker"]["environment"]["MLFLOW_TRACKING_URI"].removeprefix("http://"), "127.0.0.1:5000"]
    allowed = get_allowed_hosts_from_env() or []
    assert [host for host in called if not is_allowed_host_header(allowed, host)] == []
    assert not is_allowed_host_header(allowed, "evil.example:5000")


def test_mlflow_runs_no_jobs_and_no_pickles() -> None:
    for name in ("mlflow", "worker"):
        assert SERVICES[name]["environment"]["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert SERVICES["mlflow"]["environment"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert "basic-auth" in SERVICES["mlflow"]["command"]


def test_prefect_reads_its_settings_as_they_are_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {**SERVICES["prefect"]["environment"], **SERVICES["worker"]["environment"]}
    for name, value in names.items():
        if name.startswith("PREFECT_"):
            monkeypatch.setenv(name, re.sub(r"\$\{(\w+):\?.*\}", r"\1", value))
    settings = type(get_current_settings())()
    connection = settings.server.database.connection_url
    assert connection is not None
    assert (
        connection.get_secret_value() == "postgresql+asyncpg://prefect:PREFECT_DATABASE_PASSWORD@postgres:5432/prefect"
    )
    server, client = settings.server.api.auth_string, settings.api.auth_string
    assert server is not None and client is not None and server.get_secret_value() == client.get_secret_value()
    assert settings.server.ui.static_directory == "/tmp/prefect-ui"
    assert (settings.worker.webserver.host, settings.worker.webserver.port) == ("127.0.0.1", 8080)


def test_buckets_are_those_of_the_environment() -> None:
    environment = {"KSHOT_S3_ENDPOINT": "http://s3:9000", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    assert [(one.name, one.endpoint_url) for one in buckets(["a", "b"], environment)] == [
        ("a", "http://s3:9000"),
        ("b", "http://s3:9000"),
    ]
    with pytest.raises(ConfigError, match="found no AWS_SECRET_ACCESS_KEY in the environment"):
        buckets(["a"], environment | {"AWS_SECRET_ACCESS_KEY": ""})
