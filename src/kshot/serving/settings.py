"""What a service may be asked for at most, and what it keeps: the file that `kshot serve --settings` names."""

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter
from pydantic import ValidationError as PydanticError
from pydantic.dataclasses import dataclass as settings

from kshot.errors import ConfigError
from kshot.settings import STRICT
from kshot.yaml_file import read_yaml

_Count = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(gt=0)]


@settings(frozen=True, kw_only=True, config=STRICT)
class Limits:
    """Beyond one, a request is refused before anything of it is worked on."""

    body_mib: _Count = 8
    items: _Count = 64  # of one request
    megapixels: Annotated[float, Field(gt=0, le=178)] = 16.0  # of one picture, by its header
    galleries: _Count = 1000
    classes: _Count = 1000  # of a gallery
    examples: _Count = 5000  # of a gallery
    headers_s: _Seconds = 10.0  # to receive them
    body_s: _Seconds = 30.0  # to receive it
    connections: _Count = 512
    waiting: _Count = 64  # requests, before one is told to come back


@settings(frozen=True, kw_only=True, config=STRICT)
class LogSettings:
    """What is kept of answers, for `kshot monitor`: a Parquet file at a time, by day."""

    keep: bool = True
    pictures: bool = False  # features and answers are kept always
    days: _Count = 30
    gib: Annotated[float, Field(gt=0)] = 2.0
    rows_at_once: _Count = 1000
    flush_s: _Seconds = 10.0


@settings(frozen=True, kw_only=True, config=STRICT)
class ServiceSettings:
    limits: Limits = Field(default_factory=Limits)
    log: LogSettings = Field(default_factory=LogSettings)
    adapted_mib: _Count = 512  # of galleries that are kept adapted
    items_mib: _Count = 256  # of examples that are kept decoded
    together: _Count = 8  # requests to one gallery that are answered in one pass
    watch_s: _Seconds = 5.0  # between looks at the alias
    refresh_s: _Seconds = 1.0  # between looks at a gallery in a bucket; one on disk is looked at for each request
    drain_s: _Seconds = 20.0  # for requests under way, when the service is asked to end
    leave_one_out: _Count = 200  # examples of a gallery that are tried at most


def read_settings(path: Path | None) -> ServiceSettings:
    """Defaults where there is no file. Raises ConfigError for a key or value that is not one of these."""
    if path is None:
        return ServiceSettings()
    try:
        return TypeAdapter(ServiceSettings).validate_json(json.dumps(read_yaml(path) or {}))
    except OSError as error:
        raise ConfigError(f"no settings at {path} ({error.strerror}); need a YAML file") from error
    except PydanticError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: {where}: {first['msg']}, found {first['input']!r}") from error
