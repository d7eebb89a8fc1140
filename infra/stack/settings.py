"""Where the stack lives, at which ports it listens and with which keys: made by the first start, then read."""

import getpass
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from hashlib import sha256
from pathlib import Path

from dotenv import dotenv_values

from kshot.errors import ConfigError
from kshot.project.bucket import Bucket
from kshot.servers import LOCALHOST, free_port, is_free

_USUAL_PORTS = {
    "postgres_port": 5432,
    "s3_port": 9000,
    "mlflow_port": 5000,
    "prefect_port": 4200,
    "worker_port": 8080,
    "serving_port": 8400,
}
_LATER = frozenset({"serving_port", "serving_key"})  # which stacks lack that were made before there was a service
_KEPT = "kept.env"  # ports and keys of every server
_OF_CLIENTS = "client.env"  # what a client needs, and no more


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is chosen once: the ports, and keys that no person ever types."""

    postgres_port: int
    s3_port: int
    mlflow_port: int
    prefect_port: int
    worker_port: int
    serving_port: int
    postgres_password: str = field(repr=False)
    mlflow_database_password: str = field(repr=False)
    prefect_database_password: str = field(repr=False)
    mlflow_bucket_key: str = field(repr=False)
    mlflow_bucket_secret: str = field(repr=False)
    project_bucket_key: str = field(repr=False)
    project_bucket_secret: str = field(repr=False)
    mlflow_admin_password: str = field(repr=False)
    mlflow_client_password: str = field(repr=False)
    mlflow_session_key: str = field(repr=False)
    prefect_password: str = field(repr=False)
    serving_key: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A stack in `folder`; every path and address of it."""

    folder: Path
    kept: Kept

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def postgres_data(self) -> Path:
        return self.folder / "postgres"

    @property
    def objects(self) -> Path:
        """What the S3 server serves: a folder for each bucket."""
        return self.folder / "s3"

    @property
    def client_environment_file(self) -> Path:
        return self.folder / _OF_CLIENTS

    @property
    def socket(self) -> Path:
        """Of supervisord. Not with the rest: the path of a socket may have no more than some 100 letters."""
        owner = sha256(str(self.folder).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"kshot-stack-{getpass.getuser()}-{owner}" / "supervisor.sock"

    @property
    def mlflow_url(self) -> str:
        return f"http://{LOCALHOST}:{self.kept.mlflow_port}"

    @property
    def prefect_url(self) -> str:
        """Of the pages; the API is at /api."""
        return f"http://{LOCALHOST}:{self.kept.prefect_port}"

    @property
    def s3_url(self) -> str:
        return f"http://{LOCALHOST}:{self.kept.s3_port}"

    @property
    def worker_url(self) -> str:
        return f"http://{LOCALHOST}:{self.kept.worker_port}"

    @property
    def serving_url(self) -> str:
        return f"http://{LOCALHOST}:{self.kept.serving_port}"

    @property
    def serving_keys_file(self) -> Path:
        """Hashes of the keys of the service."""
        return self.folder / "serving-keys.txt"

    @property
    def mlflow_bucket(self) -> Bucket:
        return self._bucket("mlflow", self.kept.mlflow_bucket_key, self.kept.mlflow_bucket_secret)

    @property
    def project_bucket(self) -> Bucket:
        """What DVC sends to."""
        return self._bucket("kshot", self.kept.project_bucket_key, self.kept.project_bucket_secret)

    def database(self, user: str, password: str, *, driver: str = "postgresql", name: str | None = None) -> str:
        return f"{driver}://{user}:{password}@{LOCALHOST}:{self.kept.postgres_port}/{name or user}"

    def client_environment(self) -> dict[str, str]:
        """Variables with which a project uses the stack."""
        kept = self.kept
        return {
            "MLFLOW_TRACKING_URI": self.mlflow_url,
            "MLFLOW_TRACKING_USERNAME": "kshot",
            "MLFLOW_TRACKING_PASSWORD": kept.mlflow_client_password,
            "PREFECT_API_URL": f"{self.prefect_url}/api",
            "PREFECT_API_AUTH_STRING": f"kshot:{kept.prefect_password}",
            "AWS_ACCESS_KEY_ID": kept.project_bucket_key,
            "AWS_SECRET_ACCESS_KEY": kept.project_bucket_secret,
            "AWS_DEFAULT_REGION": self.project_bucket.region,
            "KSHOT_REMOTE_URL": f"s3://{self.project_bucket.name}",
            "KSHOT_REMOTE_ENDPOINT_URL": self.s3_url,
            "KSHOT_SERVICE_URL": self.serving_url,
            "KSHOT_SERVICE_KEY": kept.serving_key,
        }

    def _bucket(self, name: str, key: str, secret: str) -> Bucket:
        return Bucket(name=name, access_key_id=key, secret_access_key=secret, endpoint_url=self.s3_url)


def read_stack(folder: Path) -> Stack:
    """The stack that was made in `folder`. Raises ConfigError where there is none, or what was kept is damaged."""
    path = folder / _KEPT
    if not path.is_file():
        raise ConfigError(f"found no {path}; need a stack that was started once; next: make stack")
    values = dotenv_values(path, interpolate=False)
    try:
        kept = {name: field_type(values[name.upper()]) for name, field_type in _kept_types().items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: {error!r}; need every port and key of the stack; next: put back a copy of that file, or move "
            f"{folder} away to begin a new one"
        ) from error
    return Stack(folder=folder, kept=Kept(**kept))


def read_or_make_stack(folder: Path) -> Stack:
    """The stack in `folder`, with ports and keys made now where it is new."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _KEPT
    values = {name: value for name, value in dotenv_values(path, interpolate=False).items() if value is not None}
    missing = [name for name in _kept_types() if name.upper() not in values]
    if not values or set(missing) <= _LATER:
        write_private(path, _lines({**values, **{name.upper(): _new(name) for name in missing}}))
    stack = read_stack(folder)
    write_private(stack.client_environment_file, _lines(stack.client_environment()))
    return stack


def _new(name: str) -> str:
    """A port, the usual one where it is free, or a key."""
    if name in _USUAL_PORTS:
        return str(_USUAL_PORTS[name] if is_free(_USUAL_PORTS[name]) else free_port())
    return secrets.token_hex(24)


def write_private(path: Path, text: str) -> None:
    """Whole or not at all, and readable by its owner alone from the first moment on."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    beside.replace(path)


def _lines(values: Mapping[str, str]) -> str:
    return "".join(f"{name}={value}\n" for name, value in values.items())


def _kept_types() -> dict[str, type]:
    return {one.name: int if one.name in _USUAL_PORTS else str for one in fields(Kept)}
