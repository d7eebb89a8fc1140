"""The task_pool and evaluate stages on a tiny dataset, with real files."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from kshot.config import load_params
from kshot.data.packed import PackedDataset
from kshot.episodes.pools import FrozenPool
from kshot.errors import DataError, ModelError
from kshot.model import load_model
from kshot.stages import evaluate, launch, meta_train, pretrain, task_pool
from kshot.workspace import Workspace
from tests.browser import check_stands_alone
from tests.tiny_project import tiny_params, write_project

HEADS = {f"pretrained, {head}" for head in ("prototypes", "simpleshot", "linear head", "ridge", "logistic", "lda")}
BASELINES = {"pixel nearest centroid", "untrained backbone, prototypes"} | HEADS


def evaluated(root: Path, algorithm: dict[str, Any], **backbone: str) -> Path:
    torch.set_num_threads(1)
    params = tiny_params()
    params["meta_train"]["algorithm"] = algorithm
    params["backbone"] |= backbone
    params["pretrain"] = {"name": "supervised", "n_steps": 3, "validate_every": 3}
    write_project(root, params)
    loaded = load_params(root / "params.yaml")
    task_pool.run(loaded, Workspace(root))
    pretrain.run(loaded, Workspace(root))
    meta_train.run(loaded, Workspace(root))
    evaluate.run(loaded, Workspace(root))
    return root


@pytest.fixture(scope="module")
def protonet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluated(tmp_path_factory.mktemp("protonet"), {"name": "protonet"})


@pytest.fixture(scope="module")
def maml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluated(tmp_path_factory.mktemp("maml"), {"name": "maml", "first_order": True})


def metrics(root: Path) -> Any:
    return json.loads((root / "artifacts/evaluate/metrics.json").read_text())


def test_every_setting_is_reported_with_its_interval_baseline_and_pool(protonet: Path) -> None:
    results = metrics(protonet)["results"]
    pools = json.loads((protonet / "artifacts/task_pool/pools.json").read_text())["frozen"]
    assert [(r["n_way"], r["k_shot"], r["mode"]) for r in results] == [
        (3, 1, "non-transductive"),
        (2, 2, "non-transductive"),
    ]
    assert [r["pool_hash"] for r in results] == [pools["meta_test-3w1s"]["hash"], pools["meta_test-2w2s"]["hash"]]
    assert all(r["episodes"] == 10 and r["ci95"] > 0 and set(r["baselines"]) == BASELINES for r in results)


def test_maml_is_scored_with_and_without_query_statistics(maml: Path) -> None:
    assert {r["mode"] for r in metrics(maml)["results"]} == {"transductive", "non-transductive"}


def test_another_norm_than_that_of_batches_stands_beside_the_mode_of_every_score(
    protonet: Path, tmp_path: Path
) -> None:
    root = evaluated(tmp_path, {"name": "protonet"}, norm="task")
    assert {(r["mode"], r["norm"]) for r in metrics(root)["results"]} == {("non-transductive", "task")}
    assert "non-transductive, task norm" in (root / "artifacts/evaluate/report.html").read_text()
    assert not any("norm" in result for result in metrics(protonet)["results"])
    model = json.loads((root / "artifacts/meta_train/model/model.json").read_text())
    assert model["config"]["backbone"]["norm"] == "task"
    model = json.loads((protonet / "artifacts/meta_train/model/model.json").read_text())
    assert "norm" not in model["config"]["backbone"]


def test_episode_and_class_tables_agree_with_the_metrics(protonet: Path) -> None:
    episodes = pd.read_parquet(protonet / "artifacts/evaluate/episodes.parquet")
    classes = pd.read_parquet(protonet / "artifacts/evaluate/per_class.parquet")
    for result in metrics(protonet)["results"]:
        rows = episodes[episodes["setting"] == result["setting"]]
        assert rows["accuracy"].mean() == pytest.approx(result["accuracy"])
        per_class = classes[classes["setting"] == result["setting"]]
        right = (per_class["accuracy"] * per_class["queries"]).sum()
        assert right / per_class["queries"].sum() == pytest.approx(result["accuracy"])
        assert set(per_class["class"]) <= {f"test/c{number}" for number in range(5)}


def test_the_report_stands_alone_and_shows_the_numbers(protonet: Path) -> None:
    page = (protonet / "artifacts/evaluate/report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "") and "https://" not in page
    assert f"{100 * metrics(protonet)['results'][0]['accuracy']:.2f}" in page


def test_classes_of_training_are_scored_beside_held_out_ones(protonet: Path) -> None:
    rows = {row["queries"]: row["accuracy"] for row in metrics(protonet)["held_in"]}
    assert list(rows) == [
        "held-in classes alone",
        "held-out classes alone",
        "both in one label space",
        "of these, queries of held-in classes",
        "of these, queries of held-out classes",
    ]
    of_three = rows["of these, queries of held-in classes"] + 2 * rows["of these, queries of held-out classes"]
    assert rows["both in one label space"] == pytest.approx(of_three / 3)
    n_answers = 10 * 3 * 2  # no more episodes than the setting has
    assert all(round(rows[name] * n_answers, 6).is_integer() for name in list(rows)[:3])


def test_an_edit_of_the_source_during_training_does_not_spoil_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_project(tmp_path, tiny_params())
    loaded = load_params(root / "params.yaml")
    task_pool.run(loaded, Workspace(root))
    hashes = iter("abcdefgh")
    monkeypatch.setattr(launch, "source_hash", lambda *_: next(hashes))
    meta_train.run(loaded, Workspace(root))
    load_model(root / "artifacts/meta_train/model")


def sha(model: Path) -> str:
    return str(json.loads((model / "model.json").read_text())["weights_sha256"])


def test_the_report_opens_in_a_browser(protonet: Path, maml: Path) -> None:
    for root in (protonet, maml):
        check_stands_alone(root / "artifacts/evaluate/report.html")


def test_pools_are_the_same_bytes_again_and_draw_from_their_own_split(protonet: Path) -> None:
    folder = protonet / "artifacts/task_pool"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    task_pool.run(load_params(protonet / "params.yaml"), Workspace(protonet))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    dataset = PackedDataset.open(protonet / "data/tiny")
    for name, split in (("meta_val", "meta_val"), ("meta_test-3w1s", "meta_test")):
        used = FrozenPool.load(folder / f"{name}.safetensors").indices
        assert set(used.class_ids.ravel()) <= set(dataset.class_ids(split))
        assert (dataset.labels[used.query] == used.class_ids[:, :, None]).all()


def test_a_model_is_chosen_without_a_look_at_the_test_pools(tmp_path: Path) -> None:
    root = write_project(tmp_path, tiny_params())
    params = load_params(root / "params.yaml")
    task_pool.run(params, Workspace(root))
    for pool in (root / "artifacts/task_pool").glob("meta_test*"):
        pool.unlink()
    meta_train.run(params, Workspace(root))
    load_model(root / "artifacts/meta_train/model")
    with pytest.raises(DataError, match="no task pool at .*meta_test-3w1s"):
        evaluate.run(params, Workspace(root))


def test_without_a_model_the_next_command_is_named(tmp_path: Path) -> None:
    root = write_project(tmp_path, tiny_params())
    with pytest.raises(ModelError, match="no model in .*next: kshot train"):
        evaluate.run(load_params(root / "params.yaml"), Workspace(root))


def test_a_learner_with_inner_steps_is_scored_after_a_handful_of_them(maml: Path, protonet: Path) -> None:
    curve = metrics(maml)["adaptation"]
    steps = [0, 1, 2, 5, 10]
    assert [point["steps"] for point in curve if point["mode"] == "non-transductive"] == steps
    assert [point["steps"] for point in curve if point["mode"] == "transductive"] == steps
    last = {point["mode"]: point["accuracy"] for point in curve if point["steps"] == 10}
    first_setting = [r for r in metrics(maml)["results"] if r["n_way"] == 3]
    assert last == {r["mode"]: pytest.approx(r["accuracy"]) for r in first_setting}
    assert metrics(protonet)["adaptation"] == []


def test_the_report_shows_mistakes_as_pictures_and_pairs_that_are_confused(protonet: Path) -> None:
    page = (protonet / "artifacts/evaluate/report.html").read_text()
    pairs = pd.read_parquet(protonet / "artifacts/evaluate/confusions.parquet")
    worst = pairs.iloc[0]
    assert page.count("data:image/png") >= 3 * 2
    assert f"<td><code>{worst['class']}</code></td><td><code>{worst['taken_for']}</code></td>" in page
    assert "Expected calibration error" in page or "expected calibration error" in page


def test_an_interval_over_classes_and_a_calibration_error_stand_beside_each_accuracy(protonet: Path) -> None:
    for result in metrics(protonet)["results"]:
        low, high = result["ci95_over_classes"]
        assert low <= result["accuracy"] <= high
        assert 0 <= result["tempered_calibration_error"] <= 1 and result["temperature"] > 0


def test_a_baseline_that_is_not_beaten_is_named_in_the_first_line(protonet: Path) -> None:
    """The images are noise, so that somewhere pixels or an untrained backbone do as well."""
    unbeaten = [r for r in metrics(protonet)["results"] if r["unbeaten"]]
    words = first_lines(protonet)
    assert ("does not beat a baseline" in words[-1]) == bool(unbeaten)


def test_the_first_line_says_so_where_the_best_head_on_the_pretrained_backbone_is_not_beaten(protonet: Path) -> None:
    """By the interval of the paired difference over all settings, which the table of episodes gives too."""
    found = metrics(protonet)["pretrained"]
    episodes = pd.read_parquet(protonet / "artifacts/evaluate/episodes.parquet")
    means = {name: episodes.groupby("setting")[name].mean().mean() for name in HEADS}
    assert means[found["best"]] == pytest.approx(max(means.values()))
    differences = (episodes["accuracy"] - episodes[found["best"]]).groupby(episodes["setting"])
    assert found["difference"] == pytest.approx(differences.mean().mean())
    error = (differences.var() / differences.size()).sum() ** 0.5 / 2
    assert found["ci95"] == pytest.approx(2.2622 * error, rel=1e-4)  # t(0.975, 9)
    named = f"best head on the pretrained backbone ({found['best']})" in first_lines(protonet)[0]
    assert named == (found["difference"] <= found["ci95"])


def test_without_pretraining_the_baselines_are_those_without_training(tmp_path: Path) -> None:
    root = write_project(tmp_path, tiny_params())
    loaded = load_params(root / "params.yaml")
    for stage in (task_pool, pretrain, meta_train, evaluate):
        stage.run(loaded, Workspace(root))
    assert "pretrained" not in metrics(root)
    assert all(set(result["baselines"]) == BASELINES - HEADS for result in metrics(root)["results"])


def first_lines(root: Path) -> list[str]:
    page = (root / "artifacts/evaluate/report.html").read_text()
    return [part.partition("</p>")[0] for part in page.split('<p class="words">')[1:]]
