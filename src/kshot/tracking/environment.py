"""What MLflow reads from the environment, settled before it is imported: `kshot.tracking` imports this first.

What the user has set stays.
"""

import os

_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # read while mlflow is imported
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # a bar for every copied file
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the addresses of a run, on a server
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # after 0, 4 and 8 s; MLflow's own 7 are silent for 272 s without a server
}

for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)
