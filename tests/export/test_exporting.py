"""Where an export comes from and goes to, what it says of itself, and what it refuses."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from kshot.algorithms import MAMLConfig, ProtoNetConfig, RidgeConfig
from kshot.backbones import Conv4Config, MLPConfig, ModuleConfig, TimmConfig
from kshot.backbones.layers.native import native_compiler, native_library, use_native_kernels
from kshot.data.items import AnyItemKind, ImageKind, VectorKind
from kshot.errors import ConfigError, DataError, ModelError
from kshot.export import programs
from kshot.export.exporting import OPSET, Wanted, export
from kshot.export.parity import PARITY
from kshot.export.runner import Classifier, FixedClassifier
from kshot.model import ModelConfig, SavedModel, build_learner, load_model, save_model
from kshot.serving.classifier import FewShotClassifier
from tests.contracts.test_exports import (
    CLASSES,
    QUERIES,
    SMALL,
    SUPPORT,
    check_answers,
    exported,
    saved_at,
    support_folder,
)
from tests.toy_episodes import SHAPE, image_items

NETWORKS = Path(__file__).with_name("own_networks.py")


def own(name: str) -> ModuleConfig:
    return ModuleConfig(make=f"{NETWORKS}:{name}")


def test_an_export_says_where_it_is_from_and_what_it_holds(tmp_path: Path) -> None:
    model, lines = saved_at(tmp_path / "model", RidgeConfig(), SMALL), list[str]()
    folder = export(str(model), Wanted(), registered_name="", root=tmp_path, report=lines.append)
    assert folder == tmp_path / ".kshot" / "exports" / "model"
    files = {"README.txt", "encoder.onnx", "export.json", "kshot_runner.py"}
    assert {path.name for path in folder.iterdir()} == files
    found = json.loads((folder / "export.json").read_text())
    written = json.loads((model / "model.json").read_text())
    assert found["model"] == {"name": "model", "version": None, "weights_sha256": written["weights_sha256"]}
    assert (found["algorithm"], found["backbone"], found["temperature"]) == ("ridge", "mlp", 1.5)
    assert (found["item"]["kind"], found["item"]["shape"], found["item"]["dtype"]) == ("image", [16, 16, 1], "uint8")
    assert (found["format"], found["opset"], found["kshot_version"]) == ("onnx", OPSET, "0.1.0")
    assert lines[0].startswith("largest difference to the model: ") and lines[1].startswith("model is exported to ")
    program = onnx.load(folder / "encoder.onnx")
    onnx.checker.check_model(program, full_check=True)
    assert {one.version for one in program.opset_import if one.domain in ("", "ai.onnx")} == {OPSET}
    (given,), (made,) = program.graph.input, program.graph.output
    assert (given.name, made.name) == ("items", "features")
    assert [end.type.tensor_type.shape.dim[0].dim_param for end in (given, made)] == ["items", "items"]
    assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    readme = (folder / "README.txt").read_text()
    assert "ridge on mlp" in readme and "from kshot_runner import Classifier" in readme


def test_the_lines_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = saved_at(tmp_path / "model", RidgeConfig(), SMALL)
    shown = sorted(support_folder(tmp_path).rglob("*.png"))
    for wanted in ({"format": "torch"}, {"format": "torch", "support": tmp_path / "support"}):
        folder = exported(model, **wanted)
        for name, path in zip(("a1", "a2", "b1", "b2", "query"), shown, strict=False):
            (folder / name).write_bytes(path.read_bytes())
        program = [line.strip() for line in (folder / "README.txt").read_text().splitlines() if line.startswith("    ")]
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, "kshot_runner", raising=False)
        found: dict[str, Any] = {}
        exec("\n".join(program), found)
        assert found["probabilities"].shape == (1, len(found["labels"]))
    monkeypatch.delitem(sys.modules, "kshot_runner")


def test_an_earlier_export_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    model = saved_at(tmp_path / "model", RidgeConfig(), SMALL)
    wanted = Wanted(format="torch", to=tmp_path / "to")
    for _ in range(2):
        export(str(model), wanted, registered_name="", root=tmp_path, report=lambda line: None)
    (tmp_path / "to" / "export.json").unlink()
    with pytest.raises(ConfigError, match="holds something else than an export; need a new folder; next: another --to"):
        export(str(model), wanted, registered_name="", root=tmp_path, report=lambda line: None)
    assert (tmp_path / "to" / "encoder.pt2").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_refused_with_the_way_to_get_it(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved_at(tmp_path / "model", RidgeConfig(), SMALL)
    monkeypatch.setitem(sys.modules, package, None)
    words = rf"ONNX needs {package}, which is not installed; next: pip install 'kshot\[export\]', or --format torch"
    with pytest.raises(ConfigError, match=words):
        exported(model, format="onnx")
    assert (exported(model, format="torch") / "encoder.pt2").exists()


def test_a_network_that_cannot_be_traced_is_refused_with_a_way_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = saved_at(tmp_path / "model", ProtoNetConfig(), own("looks_at_values"))
    words = r"encoder of model \(module, protonet\) cannot be traced by torch.export .* next: kshot predict"
    with pytest.raises(ModelError, match=words):
        exported(model, format="onnx")
    assert capfd.readouterr() == ("", "")
    assert not (tmp_path / "exports").exists()


def test_an_operation_that_onnx_does_not_have_is_refused_with_a_way_on(tmp_path: Path) -> None:
    model = saved_at(tmp_path / "model", ProtoNetConfig(), own("has_no_word_in_onnx"))
    with pytest.raises(ModelError, match=r"encoder of model .* cannot be written as ONNX .* next: --format torch"):
        exported(model, format="onnx")
    folder = exported(model, format="torch")
    found = Classifier(folder).adapt(image_items()[SUPPORT], CLASSES).classify(image_items()[QUERIES])
    check_answers(found, model)


def test_a_network_that_is_too_large_for_a_file_of_onnx_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "LARGEST_BYTES", 4 * 256 * 16)  # of the first layer; there are others
    with pytest.raises(ModelError, match=r"has [\d,]+ bytes of weights; a file of ONNX holds 16,384; next: --format"):
        exported(saved_at(tmp_path / "model", RidgeConfig(), SMALL), format="onnx")


@pytest.mark.parametrize("support", [False, True])
def test_an_export_that_answers_otherwise_than_the_model_is_not_written(tmp_path: Path, support: bool) -> None:
    model = saved_at(tmp_path / "model", ProtoNetConfig(), own("is_another_when_exported"))
    wanted = {"support": support_folder(tmp_path)} if support else {}
    with pytest.raises(ModelError, match="the export of model differs from the model by .*; need at most 0.0001"):
        exported(model, format="onnx", **wanted)
    assert not (tmp_path / "exports").exists()


def test_what_the_model_itself_rounds_is_not_held_against_its_export(tmp_path: Path) -> None:
    model = saved_at(tmp_path / "model", ProtoNetConfig(), own("has_large_features"))
    parity = json.loads((exported(model, format="onnx") / "export.json").read_text())["parity"]
    assert parity["features"] <= PARITY < parity["probabilities"] <= 4 * parity["rounding_of_the_model"]


@pytest.mark.parametrize(
    ("backbone", "item"),
    [
        pytest.param(MLPConfig(widths=(16,)), VectorKind(size=7), id="vectors"),
        pytest.param(
            TimmConfig(model="resnet10t", input_size=64), ImageKind(image_size=90, channels=3), id="made smaller"
        ),
        pytest.param(
            TimmConfig(model="vit_tiny_patch16_224", input_size=32),
            ImageKind(image_size=32, channels=1),
            id="attention",
        ),
    ],
)
def test_items_of_other_kinds_and_sizes_go_into_the_program(tmp_path: Path, backbone: Any, item: AnyItemKind) -> None:
    config = ModelConfig(algorithm=RidgeConfig(), backbone=backbone, item=item, train_shape=SHAPE, n_train_classes=8)
    save_model(tmp_path / "model", SavedModel(learner=build_learner(config).eval(), config=config))
    classifier = Classifier(exported(tmp_path / "model", format="onnx"))
    assert max(classifier.description["parity"].values()) <= PARITY
    items, labels = item.example(12), [number % 3 for number in range(12)]
    expected = FewShotClassifier(load_model(tmp_path / "model")).predict(items[:9], labels[:9], items[9:])
    found = classifier.adapt(items[:9], labels[:9]).classify(items[9:])
    assert found.labels.tolist() == expected.labels.tolist() == [0, 1, 2]
    np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=0, atol=PARITY)


def test_what_cannot_be_asked_together_is_refused(tmp_path: Path) -> None:
    model = saved_at(tmp_path / "maml", MAMLConfig(), SMALL)
    with pytest.raises(ConfigError, match="found --int8 with --format torch; need --format onnx"):
        exported(model, format="torch", int8=True)
    with pytest.raises(ModelError, match="maml has a network of its own .* next: leave --int8 out"):
        exported(model, int8=True, support=support_folder(tmp_path))
    with pytest.raises(ModelError, match="found 'models:/a/1' with --model b; need a number there"):
        export("models:/a/1", Wanted(format="torch"), registered_name="b", root=tmp_path, report=lambda line: None)
    with pytest.raises(DataError, match="no folder nowhere"):
        exported(model, support=Path("nowhere"))


def test_altered_weights_are_not_exported(tmp_path: Path) -> None:
    model = saved_at(tmp_path / "model", RidgeConfig(), SMALL)
    path = model / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(ModelError, match="the weights are not those that were saved"):
        exported(model, format="torch")


@pytest.mark.skipif(not native_library().exists(), reason="the native kernels are not built here")
@pytest.mark.parametrize("algorithm", [ProtoNetConfig(), MAMLConfig()], ids=lambda config: config.name)
def test_native_kernels_of_this_process_are_no_part_of_an_export(tmp_path: Path, algorithm: Any) -> None:
    """Channels of as many as the kernels take, and an inner loop that uses them."""
    model = saved_at(tmp_path / "model", algorithm, Conv4Config(width=16))
    use_native_kernels()
    try:
        assert native_compiler() is not None
        folder = exported(model, format="onnx", support=support_folder(tmp_path))
    finally:
        use_native_kernels(False)
    check_answers(FixedClassifier(folder).classify(image_items()[QUERIES]), model)


def test_exporting_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = saved_at(tmp_path / "model", MAMLConfig(), SMALL)
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    exported(model, format="torch", support=support_folder(tmp_path))
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert all(parameter.requires_grad for parameter in load_model(model).learner.parameters())
