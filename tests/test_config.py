from pathlib import Path
from typing import Any

import pytest
import yaml

from kshot.config import load_params, params_from
from kshot.episodes.sampling import Uniform, WithinGroup
from kshot.errors import ConfigError

REPOSITORY = Path(__file__).parent.parent
PRESETS = sorted((REPOSITORY / "presets").glob("*.yaml"))


def raw() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((REPOSITORY / "presets" / "demo.yaml").read_text())
    return loaded


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_valid_and_says_its_command(path: Path) -> None:
    load_params(path)
    assert "Command: make" in path.read_text().split("seed:")[0]


@pytest.mark.parametrize("sampler", [None, {"name": "uniform"}])
def test_two_settings_that_are_the_same_are_refused(sampler: dict[str, str] | None) -> None:
    raw_params = raw()
    raw_params["task_pool"]["meta_test"]["settings"] = [
        {"n_way": 5, "k_shot": 1},
        {"n_way": 5, "k_shot": 1} | ({} if sampler is None else {"sampler": sampler}),
    ]
    with pytest.raises(ConfigError, match="stands there twice; need different settings"):
        params_from(raw_params, source="params.yaml")


def test_a_setting_may_have_a_sampler_of_its_own() -> None:
    raw_params = raw()
    raw_params["task_pool"]["meta_test"]["settings"] = [
        {"n_way": 5, "k_shot": 1},
        {"n_way": 5, "k_shot": 1, "sampler": {"name": "within_group"}},
    ]
    pools = params_from(raw_params, source="params.yaml").task_pool
    assert {name: str(kind) for name, kind in pools.meta_test.kinds().items()} == {
        "5w1s": "5-way 1-shot",
        "5w1s-within_group": "5-way 1-shot within a group",
    }
    assert [kind.sampler for kind in pools.kinds()["meta_test"]] == [Uniform(), WithinGroup()]


WEIGHTS = "task_pool.meta_train.sampler.weights"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("sed", 1, r"unknown key sed; did you mean seed\?"),
        ("task_pool.meta_train.shape.n_wey", 5, r"unknown key task_pool.meta_train.shape.n_wey; did you mean n_way\?"),
        ("meta_train.training.outer_lrr", 5, r"unknown key meta_train.training.outer_lrr; did you mean outer_lr\?"),
        ("meta_train.algorithm.inner_lr", 0.4, r"unknown key meta_train.algorithm.inner_lr; known: name"),
        (
            "task_pool.meta_test.settings.0.shots",
            1,
            r"unknown key task_pool.meta_test.settings.0.shots; did you mean k_shot\?",
        ),
        ("meta_train.training.n_steps", "many", r"meta_train.training.n_steps is 'many'; need a valid integer"),
        ("meta_train.training.n_steps", -1, r"meta_train.training.n_steps is -1; need greater than or equal to 0"),
        (
            "meta_train.algorithm.name",
            "ProtoNet",
            r"meta_train.algorithm.name is 'ProtoNet'; need one of 'protonet', .*; did you mean protonet\?$",
        ),
        ("meta_train.algorithm.name", "perceptron", r"algorithm.name is 'perceptron'; need one of '[^?]*'$"),
        ("backbone.name", "Conv-4", r"backbone.name is 'Conv-4'; need one of .*; did you mean conv4\?"),
        ("meta_train.algorithm", {}, "meta_train.algorithm.name is missing"),
        ("meta_train.training.outer_lr", float("inf"), "need plain YAML values"),
        ("dataset.name", 1.5, "dataset.name is 1.5; need a text: put quotes around it"),
        ("dataset.name", True, "dataset.name is true; need a text: put quotes around it"),
        ("dataset.name", None, "dataset.name is null; need a text"),
        ("process", {"native_kernels": "yes"}, "process.native_kernels is 'yes'; need true or false"),
        ("meta_train.training.schedule", "step", r"'step'; need 'constant', 'halving', 'cosine' or 'linear'"),
        ("dataset.name", "../x", r"dataset.name is '../x'"),
        (WEIGHTS, {"ink": -1}, f"{WEIGHTS}: 'ink' has the weight -1; need 0 or a number from 0.001 to 1000"),
        (WEIGHTS, {"ink": "much"}, "'ink' has the weight 'much'; need 0 or"),
        (WEIGHTS, {"ink": 1e-9}, "'ink' has the weight 1e-09; need 0 or"),
        (WEIGHTS, ["ink"], f"{WEIGHTS}: need domains and their weights, such as"),
    ],
)
def test_a_bad_setting_is_named_in_full(path: str, value: object, message: str) -> None:
    params = raw()
    if path == WEIGHTS:
        params["task_pool"]["meta_train"]["sampler"] = {"name": "within_domain"}
    node: Any = params
    *parents, last = path.split(".")
    for part in parents:
        node = node[int(part)] if part.isdigit() else node[part]
    node[last] = value
    with pytest.raises(ConfigError, match=message) as caught:
        params_from(params, source="params.yaml")
    assert "\n" not in str(caught.value)


SUPERVISED = {"name": "supervised", "n_steps": 5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"initial": "pretrained"},
            r"initial is pretrained; need .* other than none, or backbone.weights; next: set pretrain: {name: sup",
        ),
        (
            {"n_steps": 0},
            r"n_steps is 0 and meta_train.initial is random, .*; next: set meta_train.initial: pretrained",
        ),
        (
            {"n_steps": 0, "initial": "pretrained", "pretrain": SUPERVISED, "seeds": [2]},
            r"seeds is \[2\] .* seeds: \[\]$",
        ),
        ({"seeds": [1]}, r"seeds lists other seeds than seed"),
        (
            {"beat_pretrained": True},
            r"beat_pretrained is true; need .* other than none, or weights; next: set pretrain",
        ),
    ],
)
def test_sections_that_contradict_one_another_are_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    params = raw()
    params["meta_train"]["algorithm"] = {"name": "ridge"}
    params["meta_train"]["training"]["n_steps"] = changes.get("n_steps", 5)
    params["meta_train"]["initial"] = changes.get("initial", "random")
    params["register"]["promotion"] = {"beat_pretrained": changes.get("beat_pretrained", False)}
    params |= {key: changes[key] for key in ("pretrain", "seeds") if key in changes}
    with pytest.raises(ConfigError, match=f"^params.yaml: .*{message}") as caught:
        params_from(params, source="params.yaml")
    assert "\n" not in str(caught.value)


def test_a_missing_setting_is_named_in_full() -> None:
    params = raw()
    del params["task_pool"]["meta_val"]["n_episodes"]
    with pytest.raises(ConfigError, match="params.yaml: task_pool.meta_val.n_episodes is missing"):
        params_from(params, source="params.yaml")


def test_a_missing_or_broken_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no .*params.yaml; need a params file"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1\nb: }")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="params.yaml"):
        load_params(tmp_path / "params.yaml")
