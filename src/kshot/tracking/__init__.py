"""Runs, the model registry and its aliases in MLflow: the only package that imports mlflow, which takes seconds."""

import kshot.tracking.environment  # noqa: F401  before anything imports mlflow
from kshot.tracking.champion import Move, history, last_decision, move_champion, record_decision, rollback
from kshot.tracking.runs import (
    CHALLENGER,
    CHAMPION,
    COST,
    PREVIOUS,
    LoggedFile,
    MetricPoint,
    ModelFiles,
    Registration,
    RunRecord,
    TrainingData,
    flatten,
    register,
    registered,
    serving_requirements,
)
from kshot.tracking.store import check_server, default_tracking_uri, load_database_stores, prepare_store
from kshot.tracking.versions import (
    RegisteredModel,
    attach,
    fetch_model,
    fetch_run_files,
    recorded_call,
    run_metrics,
    version_with,
)

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "COST",
    "PREVIOUS",
    "LoggedFile",
    "MetricPoint",
    "ModelFiles",
    "Move",
    "RegisteredModel",
    "Registration",
    "RunRecord",
    "TrainingData",
    "attach",
    "check_server",
    "default_tracking_uri",
    "fetch_model",
    "fetch_run_files",
    "flatten",
    "history",
    "last_decision",
    "load_database_stores",
    "move_champion",
    "prepare_store",
    "record_decision",
    "recorded_call",
    "register",
    "registered",
    "rollback",
    "run_metrics",
    "serving_requirements",
    "version_with",
]
