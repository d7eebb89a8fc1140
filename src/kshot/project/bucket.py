"""S3-compatible storage: the bucket behind a DVC remote."""

from dataclasses import dataclass, field
from typing import Any

from kshot.errors import ConfigError, StageError

_CONNECT_TIMEOUT_S = 5
_READ_TIMEOUT_S = 20
_ATTEMPTS = 2  # of which botocore spends the second on 5xx and time-outs only, never on 403
_CHECK_KEY = "kshot-check"


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A bucket and the key pair to reach it; `endpoint_url` is None for AWS itself."""

    name: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    endpoint_url: str | None = None
    region: str = "us-east-1"


def ensure_bucket(bucket: Bucket) -> bool:
    """Make the bucket unless it is there; then write, read back and remove a small object.

    Returns True if it was created. Raises ConfigError for a wrong key, name or endpoint address, and StageError
    for a server that does not answer or that answers with an error; after 50 seconds at the latest.
    """
    from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

    try:
        client = _client(bucket)
        made = _make_where_missing(client, bucket)
        _check(client, bucket)
        return made
    except ClientError as error:
        raise _refused(error, bucket) from error
    except (ParamValidationError, ValueError) as error:
        raise ConfigError(f"bucket {bucket.name!r} at {_place(bucket)}: {_one_line(error)}") from error
    except BotoCoreError as error:
        raise StageError(
            f"no answer from {_place(bucket)}: {_one_line(error)}; next: check endpointurl and that the server runs"
        ) from error


def _client(bucket: Bucket) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=bucket.endpoint_url,
        aws_access_key_id=bucket.access_key_id,
        aws_secret_access_key=bucket.secret_access_key,
        region_name=bucket.region,
        config=Config(
            signature_version="s3v4",
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            retries={"total_max_attempts": _ATTEMPTS, "mode": "standard"},
        ),
    )


def _make_where_missing(client: Any, bucket: Bucket) -> bool:
    from botocore.exceptions import ClientError

    try:
        client.head_bucket(Bucket=bucket.name)
    except ClientError as error:
        if _status(error) != 404:
            raise
    else:
        return False
    if bucket.endpoint_url is None and bucket.region != "us-east-1":
        client.create_bucket(
            Bucket=bucket.name,
            CreateBucketConfiguration={"LocationConstraint": bucket.region},
        )
    else:
        client.create_bucket(Bucket=bucket.name)
    return True


def _check(client: Any, bucket: Bucket) -> None:
    content = b"written by kshot to see that this bucket keeps what it is given"
    client.put_object(Bucket=bucket.name, Key=_CHECK_KEY, Body=content)
    found = client.get_object(Bucket=bucket.name, Key=_CHECK_KEY)["Body"].read()
    client.delete_object(Bucket=bucket.name, Key=_CHECK_KEY)
    if found != content:
        raise StageError(f"bucket {bucket.name} at {_place(bucket)} gave back {len(found)} other bytes than written")


def _refused(error: "Exception", bucket: Bucket) -> ConfigError | StageError:
    code, status = error.response["Error"].get("Code", ""), _status(error)  # type: ignore[attr-defined]
    code = "" if code == str(status) else f" {code}"  # a refused HEAD has no body to say more
    answer = f"{_place(bucket)} answered {status}{code} for bucket {bucket.name}"
    if status in (401, 403):
        return ConfigError(
            f"{answer}; need a key pair with rights on it; next: check access_key_id and secret_access_key"
        )
    if 400 <= status < 500:
        return ConfigError(f"{answer}; next: check the bucket's name, region and endpointurl")
    return StageError(f"{answer}; next: try again later")


def _status(error: Exception) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])  # type: ignore[attr-defined]


def _place(bucket: Bucket) -> str:
    return bucket.endpoint_url or f"AWS S3 in {bucket.region}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
