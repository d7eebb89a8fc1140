"""python -m infra.make_buckets NAME...: see that the buckets exist and keep what they are given.

The server is that of KSHOT_S3_ENDPOINT, the key pair that of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
"""

import os
import sys
from collections.abc import Mapping, Sequence

from kshot.errors import ConfigError, KshotError
from kshot.project.bucket import Bucket, ensure_bucket

_NEEDED = ("KSHOT_S3_ENDPOINT", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def buckets(names: Sequence[str], environment: Mapping[str, str]) -> list[Bucket]:
    """The buckets of these names. Raises ConfigError where the environment does not say where they are."""
    if missing := [name for name in _NEEDED if not environment.get(name)]:
        raise ConfigError(f"found no {', '.join(missing)} in the environment; need the server and its keys there")
    endpoint, access_key_id, secret_access_key = (environment[name] for name in _NEEDED)
    return [
        Bucket(name=name, access_key_id=access_key_id, secret_access_key=secret_access_key, endpoint_url=endpoint)
        for name in names
    ]


def main() -> int:
    try:
        for bucket in buckets(sys.argv[1:], os.environ):
            made = ensure_bucket(bucket)
            print(f"bucket {bucket.name}: {'made' if made else 'there already'}, written and read back")
    except KshotError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
