"""Prefect flows over the stages of dvc.yaml.

Prefect and MLflow read these settings while they are imported, so they are set before any flow file
imports them. A value that the environment already has stays.
"""

import os
from pathlib import Path

from kshot.servers import keep_own_addresses_off_proxies
from kshot.workspace import Workspace

_DEFAULTS = {
    "PREFECT_HOME": str(Workspace.nearest(Path.cwd()).prefect_home),
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
keep_own_addresses_off_proxies()
for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)
Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)  # Prefect makes the last folder only
