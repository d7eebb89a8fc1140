import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient

from kshot.config import Params, load_params, params_from
from kshot.data.packed import PackedDataset
from kshot.episodes.clusters import KMeansClustering
from kshot.episodes.labels import ClusterLabels
from kshot.episodes.sampling import HardClasses
from kshot.errors import DataError, StageError
from kshot.evaluation.cost import Cost
from kshot.ingest.curate import drop, undo
from kshot.model import ModelConfig, SavedModel, build_learner, save_model
from kshot.registry.registration import model_card, read_finished_run, register_run
from kshot.tracking import default_tracking_uri
from tests.tiny_dataset import tiny_dataset

PARAMS: dict[str, Any] = {
    "seed": 1,
    "dataset": {"name": "tiny"},
    "validate": {},
    "task_pool": {
        "meta_train": {"shape": {"n_way": 3, "k_shot": 1, "n_query": 2}},
        "meta_val": {"shape": {"n_way": 2, "k_shot": 1, "n_query": 2}, "n_episodes": 2},
        "meta_test": {
            "n_episodes": 4,
            "n_query": 2,
            "settings": [{"n_way": 2, "k_shot": 1}, {"n_way": 3, "k_shot": 2}],
        },
    },
    "backbone": {"name": "conv4", "width": 2},
    "pretrain": {"name": "none"},
    "pseudo_labels": {"name": "none"},
    "meta_train": {
        "algorithm": {"name": "protonet"},
        "initial": "random",
        "training": {"n_steps": 20},
    },
    "evaluate": {},
    "seeds": [],
    "cross_domain": [],
    "register": {"model_name": "toy"},
}
LOCKED = {
    "validate": ("dataset", "task_pool", "validate"),
    "task_pool": ("dataset", "seed", "task_pool"),
    "pretrain": ("backbone", "dataset", "pretrain", "seed"),
    "pseudo_labels": ("dataset", "pseudo_labels", "seed"),
    "meta_train": ("backbone", "dataset", "meta_train", "seed"),
    "evaluate": ("dataset", "evaluate", "seed"),
}


WriteRun = Callable[..., Params]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bool], Path]:
    """A folder with a finished run, and its receipt as DVC writes it."""

    @cache
    def make(with_queries: bool) -> Path:
        root = tmp_path_factory.mktemp("finished") / "project"
        root.mkdir()
        write_artifacts(root, with_queries=with_queries)
        (root / ".dvc").mkdir()
        (root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
        stages: dict[str, Any] = {
            name: {"cmd": f"python -m kshot {name}", "params": list(keys), "outs": [f"artifacts/{name}"]}
            for name, keys in LOCKED.items()
        }
        stages["cross_domain"] = {
            "foreach": "${cross_domain}",
            "do": {"cmd": "python -m kshot cross-domain ${item}", "outs": ["artifacts/cross_domain/${item}"]},
        }
        (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
        subprocess.run([sys.executable, "-m", "dvc", "commit", "--quiet", "--force"], cwd=root, check=True)
        return root

    return make


@pytest.fixture
def write_run(finished: Callable[[bool], Path], project: Path) -> WriteRun:
    """Puts a finished run into `project`."""

    def copy(*, with_queries: bool = False) -> Params:
        shutil.copytree(finished(with_queries), project, ignore=shutil.ignore_patterns("tmp"), dirs_exist_ok=True)
        return load_params(project / "params.yaml")

    return copy


def write_artifacts(root: Path, *, accuracy: float = 0.75, with_queries: bool = False) -> None:
    """A finished run as the stages leave it, with the results given."""
    (root / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    params = load_params(root / "params.yaml")
    if not (root / "data").exists():
        tiny_dataset().write(root / "data" / "tiny")
    dataset = PackedDataset.open(root / "data" / "tiny")
    artifacts = root / "artifacts"
    for name in ("validate", "task_pool", "pretrain", "pseudo_labels", "meta_train", "evaluate/plots"):
        (artifacts / name).mkdir(parents=True, exist_ok=True)
    config = ModelConfig(
        algorithm=params.meta_train.algorithm,
        backbone=params.backbone,
        item=dataset.item,
        train_shape=params.task_pool.meta_train.shape,
    )
    save_model(artifacts / "meta_train" / "model", SavedModel(learner=build_learner(config), config=config))
    history = pd.DataFrame({"step": [10, 20], "loss": [1.5, 1.0], "val_accuracy": [0.5, 0.6]})
    history.to_parquet(artifacts / "meta_train" / "history.parquet")
    results = [result(2, 1, accuracy), result(3, 2, accuracy)]
    if with_queries:
        results.append(result(2, 1, 0.999, mode="transductive"))
    pd.DataFrame({"accuracy": [accuracy]}).to_parquet(artifacts / "evaluate" / "episodes.parquet")
    pd.DataFrame({"accuracy": [accuracy]}).to_parquet(artifacts / "evaluate" / "per_class.parquet")
    for name in ("confusions", "reference"):
        pd.DataFrame({"times": [1]}).to_parquet(artifacts / "evaluate" / f"{name}.parquet")
    for name, content in {
        "validate/facts.json": {"checks": [check("ids are unique", True), check("near duplicates", False)]},
        "task_pool/pools.json": {"data_hash": dataset.content_hash, "meta_train": {}},
        "pretrain/metrics.json": {},
        "pseudo_labels/metrics.json": {},
        "meta_train/metrics.json": {
            "best_step": 20,
            "best_val_accuracy": 0.6,
            "steps": 20,
            "processes": 1,
            "device": "cpu",
            "stopped_early": False,
        },
        "evaluate/metrics.json": {
            "dataset": "tiny",
            "algorithm": "protonet",
            "backbone": "conv4",
            "seed": 1,
            "train_shape": {"n_way": 3, "k_shot": 1, "n_query": 2},
            "results": results,
            "episodes_id": "e" * 64,
        },
    }.items():
        (artifacts / name).write_text(json.dumps(content))
    for name in (
        "validate/report.html",
        "evaluate/report.html",
        "evaluate/sections.html",
        "evaluate/plots/accuracy.png",
    ):
        (artifacts / name).write_text(name)
    (root / "data.dvc").write_text("outs: []\n")


def result(n_way: int, k_shot: int, accuracy: float, mode: str = "non-transductive") -> dict[str, Any]:
    return {
        "setting": f"{n_way}w{k_shot}s",
        "title": f"{n_way}-way {k_shot}-shot",
        "n_query": 2,
        "episodes": 4,
        "mode": mode,
        "accuracy": accuracy,
        "ci95": 0.02,
        "ci95_over_classes": [0.6, 0.9],
        "calibration_error": 0.05,
        "baselines": {"pixels": {"accuracy": 0.4, "ci95": 0.03}},
        "pool_hash": f"{n_way}{k_shot}" * 32,
    }


def check(name: str, passed: bool) -> dict[str, Any]:
    return {"name": name, "severity": "warning", "passed": passed, "needed": "at most 0", "found": "3 pairs"}


@pytest.fixture
def client(project: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=default_tracking_uri(project))


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *identity, *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_finished_run_becomes_a_version_with_its_whole_lineage(
    project: Path, write_run: WriteRun, client: MlflowClient
) -> None:
    params = write_run(with_queries=True)
    git(project, "init")
    git(project, "add", "params.yaml", "dvc.lock", "mlflow")
    git(project, "commit", "-m", "a run")
    (project / "dvc.lock").write_text((project / "dvc.lock").read_text() + "\n")  # a run rewrites its receipt

    done = register_run(project, params, "flow-1")

    assert (done.name, done.version, done.alias, done.created) == ("toy", 1, "challenger", True)
    tags = client.get_model_version("toy", "1").tags
    dataset = PackedDataset.open(project / "data" / "tiny")
    expected = {
        "git_commit": git(project, "rev-parse", "HEAD"),
        "git_dirty": "false",
        "data_hash": dataset.content_hash,
        "pool_hashes": json.dumps({"2w1s": "21" * 32, "3w2s": "32" * 32}),
        "flow_run_id": "flow-1",
        "held_out_episodes": "e" * 64,
    }
    assert tags.items() >= expected.items()
    run = client.get_run(done.mlflow_run_id)
    assert run.data.tags.items() >= expected.items()
    assert run.data.params["backbone.width"] == "2"
    assert run.data.params["meta_train.training.outer_lr"] == "0.001", "defaults are logged as well"
    assert run.data.metrics["meta_test/2w1s/accuracy"] == 0.75
    assert run.data.metrics["meta_test/2w1s/accuracy_transductive"] == 0.999
    assert run.data.metrics["cost/adapt_ms"] > 0 and run.data.metrics["cost/classify_ms"] > 0
    assert [p.value for p in client.get_metric_history(done.mlflow_run_id, "meta_train/loss")] == [1.5, 1.0]
    assert files(client, done.mlflow_run_id) == {
        "data.dvc",
        "data/dataset.json",
        "data/manifest.parquet",
        "dvc.lock",
        "evaluate/confusions.parquet",
        "evaluate/episodes.parquet",
        "evaluate/metrics.json",
        "evaluate/per_class.parquet",
        "evaluate/reference.parquet",
        "evaluate/plots/accuracy.png",
        "evaluate/report.html",
        "evaluate/sections.html",
        "meta_train/history.parquet",
        "meta_train/metrics.json",
        "model_card.md",
        "params.yaml",
        "pretrain/metrics.json",
        "pseudo_labels/metrics.json",
        "smoke_test.safetensors",
        "task_pool/pools.json",
        "validate/facts.json",
        "validate/report.html",
    }


def files(client: MlflowClient, run_id: str, folder: str = "") -> set[str]:
    entries = client.list_artifacts(run_id, folder)
    below = [files(client, run_id, entry.path) for entry in entries if entry.is_dir]
    return {entry.path for entry in entries if not entry.is_dir}.union(*below)


def test_model_card_states_results_with_intervals_and_what_is_served(
    project: Path, write_run: WriteRun, client: MlflowClient
) -> None:
    register_run(project, write_run(with_queries=True), None)
    card = client.get_model_version("toy", "1").description
    for line in (
        "# toy",
        "| 2-way 1-shot | non-transductive | 75.00 ± 2.00 | 60.00 to 90.00 | 5.00 | 40.00 ± 3.00 | 4 |",
        "| 2-way 1-shot | transductive | 99.90 ± 2.00 | 60.00 to 90.00 | 5.00 | 40.00 ± 3.00 | 4 |",
        "- Data: `tiny`, 60 images, 4 / 4 / 4 classes to train, select and test.",
        "- near duplicates: 3 pairs; need at most 0",
        "| flow_run_id | `none` |",
    ):
        assert line in card.splitlines(), line
    assert "no prediction depends on the other queries" in " ".join(card.split())
    assert "ids are unique" not in card


def test_model_card_lists_the_edits_that_hold_and_counts_what_is_in_use(project: Path, write_run: WriteRun) -> None:
    params = write_run()
    run = read_finished_run(project, params)
    drop(run.dataset.folder, classes=["train/c0"])
    undo(run.dataset.folder)
    drop(run.dataset.folder, ids=["train/c1/5.png"], reason="blurred")
    curated = replace(run, dataset=PackedDataset.open(run.dataset.folder))
    cost = Cost(parameters=1, adapt_ms=1.0, classify_ms=1.0)
    card = model_card(project, params, curated, cost, {"cost_measured_on": "here"})
    assert "- Data: `tiny`, 59 images, 4 / 4 / 4 classes to train, select and test." in card
    assert "- drop of 1 item 'train/c1/5.png': blurred" in card
    assert "train/c0" not in card


def test_model_card_names_the_errors_by_which_hard_classes_were_drawn(project: Path, write_run: WriteRun) -> None:
    params = write_run()
    run, cost = read_finished_run(project, params), Cost(parameters=1, adapt_ms=1.0, classify_ms=1.0)
    assert "drawn by the errors" not in model_card(project, params, run, cost, {"cost_measured_on": "here"})
    train = replace(params.task_pool.meta_train, sampler=HardClasses(difficulty="first"))
    hard = replace(params, task_pool=replace(params.task_pool, meta_train=train))
    errors = {"difficulty_sha256": "d" * 64, "difficulty_of_weights": "e" * 64}
    card = model_card(project, hard, run, cost, {"cost_measured_on": "here"} | errors)
    assert f"errors `first` (SHA-256 {'d' * 64}) of the model with weights {'e' * 64}." in card


def test_model_card_says_what_was_clustered(project: Path, write_run: WriteRun) -> None:
    params = write_run()
    run, cost = read_finished_run(project, params), Cost(parameters=1, adapt_ms=1.0, classify_ms=1.0)
    assert "Clusters" not in model_card(project, params, run, cost, {"cost_measured_on": "here"})
    made = KMeansClustering(features="values", n_clusters=1500, n_partitions=3)
    pool = replace(params.task_pool, meta_train=replace(params.task_pool.meta_train, labels=ClusterLabels()))
    clustered = replace(params, task_pool=pool, pseudo_labels=made)
    card = model_card(project, clustered, run, cost, {"cost_measured_on": "here"})
    assert "- Clusters: 1,500 by `kmeans` of the items' values; number of such partitions: 3." in card.splitlines()


def test_registering_again_changes_nothing(project: Path, write_run: WriteRun, client: MlflowClient) -> None:
    params = write_run()
    first = register_run(project, params, None)
    assert register_run(project, params, "another-flow-run") == replace(first, created=False)
    assert len(client.search_model_versions()) == 1


def test_uncommitted_change_of_a_tracked_file_is_recorded(
    project: Path, write_run: WriteRun, client: MlflowClient
) -> None:
    params = write_run()
    git(project, "init")
    git(project, "add", "mlflow", "dvc.lock")
    git(project, "commit", "-m", "a run")
    (project / "mlflow" / "model.py").write_text((project / "mlflow" / "model.py").read_text() + "\n")
    register_run(project, params, None)
    assert client.get_model_version("toy", "1").tags["git_dirty"] == "true"


def test_a_source_file_that_git_does_not_know_is_an_uncommitted_change(
    project: Path, write_run: WriteRun, client: MlflowClient
) -> None:
    params = write_run()
    git(project, "init")
    git(project, "add", "mlflow", "dvc.lock")
    git(project, "commit", "-m", "a run")
    added = project / "src" / "kshot" / "algorithms" / "relation.py"
    added.parent.mkdir(parents=True)
    added.write_text("")
    register_run(project, params, None)
    assert client.get_model_version("toy", "1").tags["git_dirty"] == "true"


@pytest.mark.parametrize(
    "missing", ["dvc.lock", "artifacts/evaluate/metrics.json", "artifacts/validate/report.html", "mlflow/model.py"]
)
def test_missing_part_is_named_with_the_next_command(project: Path, write_run: WriteRun, missing: str) -> None:
    params = write_run()
    (project / missing).unlink()
    with pytest.raises(StageError, match=rf"^no {missing} in .*; next: make demo, or python -m flows\.train$"):
        register_run(project, params, None)


def test_run_that_did_not_reach_the_end_is_refused(project: Path, write_run: WriteRun) -> None:
    params = write_run()
    lock = yaml.safe_load((project / "dvc.lock").read_text())
    del lock["stages"]["evaluate"]
    (project / "dvc.lock").write_text(yaml.safe_dump(lock))
    with pytest.raises(StageError, match=r"dvc\.lock has no stage evaluate; need evaluate, meta_train"):
        register_run(project, params, None)


def test_artifact_that_the_receipt_does_not_name_is_refused(project: Path, write_run: WriteRun) -> None:
    params = write_run()
    weights = project / "artifacts" / "meta_train" / "model" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes() + b"\0")
    message = r"^artifacts/meta_train, which stage meta_train wrote, is modified; need it .*; next: make"
    with pytest.raises(StageError, match=message):
        register_run(project, params, None)


def test_artifact_that_cannot_be_compared_is_refused(project: Path, write_run: WriteRun) -> None:
    params = write_run()
    shutil.rmtree(project / ".dvc" / "cache")
    message = (
        r"^artifacts/evaluate, which stage evaluate wrote, is not in cache \(6 such in all\); need .*; next: dvc fetch"
    )
    with pytest.raises(StageError, match=message):
        register_run(project, params, None)


def test_setting_changed_after_the_run_is_refused(project: Path, write_run: WriteRun) -> None:
    write_run()
    changed = params_from(PARAMS | {"seed": 2}, source="params.yaml")
    with pytest.raises(StageError, match=r"params\.yaml has seed = 2; this run was made with 1"):
        register_run(project, changed, None)


def test_new_model_name_needs_no_new_run(project: Path, write_run: WriteRun) -> None:
    write_run()
    renamed = params_from(PARAMS | {"register": {"model_name": "renamed"}}, source="params.yaml")
    assert register_run(project, renamed, None).name == "renamed"


def test_a_dataset_that_is_listed_no_more_is_left_out_of_the_receipt(project: Path, write_run: WriteRun) -> None:
    params = write_run()
    lock = yaml.safe_load((project / "dvc.lock").read_text())
    gone = {"path": "artifacts/cross_domain/other", "hash": "md5", "md5": "0" * 32}
    lock["stages"]["cross_domain@other"] = {"cmd": "python -m kshot cross-domain other", "outs": [gone]}
    (project / "dvc.lock").write_text(yaml.safe_dump(lock))
    assert register_run(project, params, None).created
    (project / "params.yaml").write_text(yaml.safe_dump(PARAMS | {"cross_domain": ["other"]}))
    with pytest.raises(StageError, match=r"artifacts/cross_domain/other, which stage .* wrote, is not in cache"):
        register_run(project, replace(params, cross_domain=("other",)), None)


def test_data_changed_after_the_run_is_refused(project: Path, write_run: WriteRun) -> None:
    params = write_run()
    shutil.rmtree(project / "data")
    with pytest.raises(DataError, match=r"no dataset at"):
        register_run(project, params, None)
    tiny_dataset(n_images=6).write(project / "data" / "tiny")
    with pytest.raises(StageError, match=r"data/tiny has content hash \w{12}; this run used"):
        register_run(project, params, None)
