"""The servers of the stack: how each is started, and how it is known to work.

python -m infra.stack.programs NAME becomes that server, with the keys that it needs and no other's. So keys are in no
command line, no settings of the supervisor, and no environment but the server's own.
"""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from infra.s3_server import rclone
from infra.stack.settings import Stack, read_stack, write_private
from kshot.errors import ConfigError, StageError
from kshot.project.bucket import ensure_bucket
from kshot.servers import LOCALHOST, answers

POOL = "kshot"
SERVED = os.environ.get("KSHOT_STACK_MODEL", "kshot-glyphs")  # the registered model that the service answers with
_CHAMPION = "champion"
_SYSTEM_USER = "postgres"  # PostgreSQL refuses to run as root
_INHERITED = (
    "KSHOT_STACK_MODEL",
    "PATH",
    "HOME",
    "LANG",
    "TMPDIR",
    "TZ",
    "SSL_CERT_FILE",
    "PIP_INDEX_URL",
    "UV_DEFAULT_INDEX",
)
_QUIET = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PYTHONUNBUFFERED": "1",
}
_DATABASES = ("mlflow", "mlflow_auth", "prefect")
_HEARTBEAT_S = "30"  # the least that Prefect allows


@dataclass(frozen=True, kw_only=True)
class Program:
    """A server. `prepare` is done before it starts and `finish` once it works, at every start of the stack.

    `waits_for` says what has to be there before it can start at all; "" where it can.
    """

    name: str
    command: Callable[[Stack], list[str]]
    environment: Callable[[Stack], dict[str, str]]
    works: Callable[[Stack], bool]
    address: Callable[[Stack], str]
    prepare: Callable[[Stack], None] = lambda stack: None
    finish: Callable[[Stack], None] = lambda stack: None
    waits_for: Callable[[Stack], str] = lambda stack: ""


def main() -> int:
    name, folder = sys.argv[1:]
    stack, program = read_stack(Path(folder)), {one.name: one for one in PROGRAMS}[name]
    command, environment = program.command(stack), program.environment(stack)
    os.chdir(stack.folder)
    os.execvpe(command[0], command, environment)  # noqa: S606  # the supervisor's signals are to reach it


def inherited(names: tuple[str, ...] = _INHERITED) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name in os.environ} | _QUIET


# PostgreSQL


def _postgres(stack: Stack) -> list[str]:
    return [*_as_postgres(), str(_postgres_binary("postgres")), "-D", str(stack.postgres_data)]


def _make_cluster(stack: Stack) -> None:
    data = stack.postgres_data
    if (data / "PG_VERSION").exists():
        return
    shutil.rmtree(data, ignore_errors=True)  # of a start that was killed
    data.mkdir(mode=0o700)
    if os.geteuid() == 0:
        shutil.chown(data, _SYSTEM_USER)
        _check_reachable(data)
    password = stack.folder / ".postgres-password"
    write_private(password, stack.kept.postgres_password)
    if os.geteuid() == 0:
        shutil.chown(password, _SYSTEM_USER)
    done = subprocess.run(
        [
            *_as_postgres(),
            _postgres_binary("initdb"),
            *("-D", data, "--username=kshot", "--auth=scram-sha-256", f"--pwfile={password}"),
            *("--encoding=UTF8", "--no-locale"),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=inherited(),
        cwd="/",
    )
    password.unlink()
    if done.returncode != 0:
        shutil.rmtree(data)
        raise StageError(f"initdb ended with {done.returncode}: {' '.join(done.stderr.split())}; next: make stack")
    settings = {
        "listen_addresses": f"'{LOCALHOST}'",
        "port": stack.kept.postgres_port,
        "unix_socket_directories": "''",
        "max_connections": 200,
    }
    with (data / "postgresql.conf").open("a", encoding="utf-8") as file:
        file.writelines(f"{name} = {value}\n" for name, value in settings.items())


def _check_reachable(data: Path) -> None:
    """PostgreSQL's user has to get to its folder, which a project in root's home does not allow."""
    if subprocess.run([*_as_postgres(), "test", "-x", data], check=False, cwd="/").returncode != 0:
        raise ConfigError(
            f"{data} cannot be reached by the user {_SYSTEM_USER}, as which PostgreSQL runs when root starts it; need "
            "a folder that it can reach; next: make stack KSHOT_STACK=/var/lib/kshot-stack, or start it as another user"
        )


def _make_databases(stack: Stack) -> None:
    owners = {"mlflow": stack.kept.mlflow_database_password, "prefect": stack.kept.prefect_database_password}
    with _connected(stack) as connection:
        for role, password in owners.items():
            if not connection.scalar(text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role}):
                connection.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'"))
        for database in _DATABASES:
            if not connection.scalar(text("SELECT 1 FROM pg_database WHERE datname = :name"), {"name": database}):
                connection.execute(text(f"CREATE DATABASE {database} OWNER {database.partition('_')[0]}"))
            connection.execute(text(f"REVOKE ALL ON DATABASE {database} FROM PUBLIC"))


def _postgres_works(stack: Stack) -> bool:
    try:
        with _connected(stack) as connection:
            return bool(connection.scalar(text("SELECT 1")))
    except OperationalError:
        return False


@contextmanager
def _connected(stack: Stack) -> Iterator[Connection]:
    engine = create_engine(
        as_superuser(stack), poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 2}
    )
    with engine.connect() as connection:
        yield connection


def as_superuser(stack: Stack) -> str:
    return stack.database("kshot", stack.kept.postgres_password, name="postgres")


def _as_postgres() -> list[str]:
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={_SYSTEM_USER}", f"--regid={_SYSTEM_USER}", "--init-groups"]


def _postgres_binary(name: str) -> Path:
    if found := shutil.which(name):
        return Path(found)
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))  # where Debian puts what is not on PATH
    if not installed:
        raise ConfigError(
            f"found no {name}; need a PostgreSQL server; next: apt-get install postgresql, then make stack"
        )
    return installed[-1]


# S3


def _s3(stack: Stack) -> list[str]:
    stack.objects.mkdir(exist_ok=True)
    return [rclone(), "serve", "s3", "--addr", f"{LOCALHOST}:{stack.kept.s3_port}", str(stack.objects)]


def _s3_environment(stack: Stack) -> dict[str, str]:
    pairs = [(one.access_key_id, one.secret_access_key) for one in (stack.mlflow_bucket, stack.project_bucket)]
    keys = ",".join(f'"{key},{secret}"' for key, secret in pairs)
    return inherited() | {"RCLONE_AUTH_KEY": keys, "RCLONE_CONFIG": os.devnull}


def _make_buckets(stack: Stack) -> None:
    for bucket in (stack.mlflow_bucket, stack.project_bucket):
        ensure_bucket(bucket)


# MLflow


def _mlflow(stack: Stack) -> list[str]:
    port = str(stack.kept.mlflow_port)
    return [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", LOCALHOST, "--port", port]


def _mlflow_environment(stack: Stack) -> dict[str, str]:
    hosts = ",".join(f"{host}:{stack.kept.mlflow_port}" for host in (LOCALHOST, "localhost"))
    return inherited() | {
        "MLFLOW_BACKEND_STORE_URI": stack.database("mlflow", stack.kept.mlflow_database_password),
        "MLFLOW_SERVE_ARTIFACTS": "true",
        "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{stack.mlflow_bucket.name}",
        "MLFLOW_S3_ENDPOINT_URL": stack.s3_url,
        "AWS_ACCESS_KEY_ID": stack.mlflow_bucket.access_key_id,
        "AWS_SECRET_ACCESS_KEY": stack.mlflow_bucket.secret_access_key,
        "AWS_DEFAULT_REGION": stack.mlflow_bucket.region,
        "MLFLOW_AUTH_CONFIG_PATH": str(_auth_settings(stack)),
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": stack.kept.mlflow_admin_password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": stack.kept.mlflow_session_key,
        "MLFLOW_SERVER_ALLOWED_HOSTS": hosts,
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(f"http://{host}" for host in hosts.split(",")),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_WORKERS": "1",
    }


def _auth_settings(stack: Stack) -> Path:
    return stack.folder / "mlflow-auth.ini"


def _write_auth_settings(stack: Stack) -> None:
    """A team on one server: who has an account may write, and remove what is not theirs, as kshot's lock has to."""
    database = stack.database("mlflow", stack.kept.mlflow_database_password, name="mlflow_auth")
    settings = (
        f"[mlflow]\ndefault_permission = MANAGE\ndatabase_uri = {database}\nadmin_username = admin\n"
        "auth_cache_ttl_seconds = 60\n"  # else each request spends a quarter of a second on the hash of the password
    )
    write_private(_auth_settings(stack), settings)


def _make_client_account(stack: Stack) -> None:
    import requests

    kept = stack.kept
    answer = requests.post(
        f"{stack.mlflow_url}/api/2.0/mlflow/users/create",
        auth=("admin", kept.mlflow_admin_password),
        json={"username": "kshot", "password": kept.mlflow_client_password},
        timeout=30,
    )
    if not answer.ok and "RESOURCE_ALREADY_EXISTS" not in answer.text:
        raise StageError(f"MLflow answered {answer.status_code} to a new account; next: read {stack.logs}/mlflow.log")


# Prefect


def _prefect(stack: Stack) -> list[str]:
    where = ["--host", LOCALHOST, "--port", str(stack.kept.prefect_port)]
    return [sys.executable, "-m", "prefect", "server", "start", *where, "--log-level", "warning"]


def _prefect_environment(stack: Stack) -> dict[str, str]:
    password = stack.kept.prefect_database_password
    return inherited() | {
        "PREFECT_HOME": str(stack.folder / "prefect-server"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": stack.database("prefect", password, driver="postgresql+asyncpg"),
        "PREFECT_SERVER_API_AUTH_STRING": f"kshot:{stack.kept.prefect_password}",
        "PREFECT_SERVER_UI_API_URL": f"{stack.prefect_url}/api",
    }


def _worker(stack: Stack) -> list[str]:
    kind = ["--pool", POOL, "--type", "process", "--limit", "2", "--name", "stack", "--with-healthcheck"]
    return [sys.executable, "-m", "prefect", "worker", "start", *kind]


def _worker_environment(stack: Stack) -> dict[str, str]:
    beside = Path(sys.executable).parent  # what its runs call by name: dvc, kshot, torchrun
    return {
        **inherited(),
        **stack.client_environment(),
        "PATH": f"{beside}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PREFECT_HOME": str(stack.folder / "prefect-worker"),
        "PREFECT_WORKER_WEBSERVER_HOST": LOCALHOST,
        "PREFECT_WORKER_WEBSERVER_PORT": str(stack.kept.worker_port),
        "PREFECT_RUNNER_HEARTBEAT_FREQUENCY": _HEARTBEAT_S,
        "KSHOT_RUNS": str(stack.folder / "runs"),
    }


def _worker_works(stack: Stack) -> bool:
    """It answers, and the server knows it, which is when it takes runs."""
    import requests

    user, _, password = stack.client_environment()["PREFECT_API_AUTH_STRING"].partition(":")
    pool = requests.get(f"{stack.prefect_url}/api/work_pools/{POOL}", auth=(user, password), timeout=10)
    return answers(f"{stack.worker_url}/health") and pool.ok and pool.json()["status"] == "READY"


# the service


def _serving(stack: Stack) -> list[str]:
    where = ["--host", LOCALHOST, "--port", str(stack.kept.serving_port), "--keys", str(stack.serving_keys_file)]
    galleries = f"s3://{stack.project_bucket.name}/galleries"
    return [sys.executable, "-m", "kshot", "serve", f"models:/{SERVED}@{_CHAMPION}", *where, "--galleries", galleries]


def _serving_environment(stack: Stack) -> dict[str, str]:
    return {**inherited(), **stack.client_environment(), "AWS_ENDPOINT_URL": stack.s3_url}


def _write_serving_keys(stack: Stack) -> None:
    digest = sha256(stack.kept.serving_key.encode()).hexdigest()
    write_private(stack.serving_keys_file, f"stack read,write {digest}\n")


def _no_champion(stack: Stack) -> str:
    import requests

    client = stack.client_environment()
    found = requests.get(
        f"{stack.mlflow_url}/api/2.0/mlflow/registered-models/alias",
        auth=(client["MLFLOW_TRACKING_USERNAME"], client["MLFLOW_TRACKING_PASSWORD"]),
        params={"name": SERVED, "alias": _CHAMPION},
        timeout=30,
    )
    return "" if found.ok else f"a champion of {SERVED}: make stack-demo, or a promotion and make stack"


def _listens(port: int) -> bool:
    try:
        socket.create_connection((LOCALHOST, port), timeout=1).close()
    except OSError:
        return False
    return True


PROGRAMS = (
    Program(
        name="postgres",
        command=_postgres,
        environment=lambda stack: inherited(),
        works=_postgres_works,
        address=lambda stack: f"{LOCALHOST}:{stack.kept.postgres_port}",
        prepare=_make_cluster,
        finish=_make_databases,
    ),
    Program(
        name="s3",
        command=_s3,
        environment=_s3_environment,
        works=lambda stack: _listens(stack.kept.s3_port),
        address=lambda stack: stack.s3_url,
        finish=_make_buckets,
    ),
    Program(
        name="mlflow",
        command=_mlflow,
        environment=_mlflow_environment,
        works=lambda stack: answers(f"{stack.mlflow_url}/health"),
        address=lambda stack: stack.mlflow_url,
        prepare=_write_auth_settings,
        finish=_make_client_account,
    ),
    Program(
        name="prefect",
        command=_prefect,
        environment=_prefect_environment,
        works=lambda stack: answers(f"{stack.prefect_url}/api/health"),
        address=lambda stack: stack.prefect_url,
    ),
    Program(
        name="worker",
        command=_worker,
        environment=_worker_environment,
        works=_worker_works,
        address=lambda stack: f"pool {POOL}",
    ),
    Program(
        name="serving",
        command=_serving,
        environment=_serving_environment,
        works=lambda stack: answers(f"{stack.serving_url}/healthz"),
        address=lambda stack: stack.serving_url,
        prepare=_write_serving_keys,
        waits_for=_no_champion,
    ),
)

if __name__ == "__main__":
    sys.exit(main())
