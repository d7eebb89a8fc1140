"""The registered model as its users meet it: by MLflow in Python, and over HTTP as `mlflow models serve` has it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel

from kshot.servers import answers, free_port
from kshot.tracking import RunRecord, default_tracking_uri, prepare_store, register
from tests.tracking.toy_runs import call, toy_record

SHAPE = (20, 12, 3)
LONGEST = 200  # characters of a refusal


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PyFuncModel]:
    root = tmp_path_factory.mktemp("served")
    (root / "mlflow").symlink_to(Path(__file__).parents[2] / "mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        prepare_store(root)
        record: RunRecord = toy_record(root)
        register(record)
        patch.setenv("MLFLOW_TRACKING_URI", default_tracking_uri(root))
        yield mlflow.pyfunc.load_model("models:/toy/1")


def asked(labels: Any, **changed: Any) -> dict[str, Any]:
    return {**call(SHAPE, labels=tuple(range(len(labels))), n_query=2), "support_labels": labels, **changed}


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.array([7, 7, 3], np.int64), [3, 7]),
        (np.array([7, 7, 3], np.int32), [3, 7]),
        (np.array([7, 7, 3], np.uint8), [3, 7]),
        (np.array(["b", "b", "a"]), ["a", "b"]),
        (np.array(["b", "b", "a"], object), ["a", "b"]),
        (["b", "b", "ä"], ["b", "ä"]),
        ([7, 7, 3], [3, 7]),
        (pd.Series(["b", "b", "a"]), ["a", "b"]),
    ],
    ids=str,
)
def test_labels_are_whole_numbers_or_texts_and_name_the_columns(
    model: PyFuncModel, labels: Any, classes: list[object]
) -> None:
    answer = model.predict(asked(labels))
    assert answer.columns.tolist() == classes
    assert answer.shape == (2, 2) and set(answer.dtypes) == {np.dtype(np.float32)}
    np.testing.assert_allclose(answer.sum(axis=1), 1, rtol=1e-5)
    assert [type(name) for name in answer.columns.tolist()] == [type(name) for name in classes]


def test_lists_and_arrays_and_older_names_give_the_same_answer(model: PyFuncModel) -> None:
    arrays = asked(["b", "b", "a"])
    expected = model.predict(arrays)
    lists = {name: np.asarray(value).tolist() for name, value in arrays.items()}
    pd.testing.assert_frame_equal(model.predict(lists), expected)
    older = {name.replace("items", "images"): value for name, value in arrays.items()}
    pd.testing.assert_frame_equal(model.predict(older), expected)


def test_images_of_several_sizes_are_taken_in_a_list(model: PyFuncModel) -> None:
    images = [np.zeros((16, 16, 1), np.uint8), np.full((40, 20, 3), 255, np.uint8).tolist()]
    assert model.predict(asked(["a", "b"], support_items=images)).shape == (2, 2)


REFUSED = [
    ({"support_labels": [True, False, True]}, "found labels of type bool; need whole numbers of 64 bits alone"),
    ({"support_labels": np.array([True, False, True])}, "found labels of type bool"),
    ({"support_labels": [0.5, 1.0, 2.0]}, "found labels of type float"),
    ({"support_labels": ["a", None, "b"]}, "found labels of type None, text"),
    ({"support_labels": [1, "1", 2]}, "found labels of type text, whole number"),
    ({"support_labels": [float("nan"), 1, 2]}, "found labels of type float, whole number"),
    ({"support_labels": ["a", "b"]}, r"labels of shape \(2,\) for 3 support items"),
    ({"support_labels": [["a"], "b", "c"]}, "found labels of several shapes"),
    ({"support_items": np.random.default_rng(0).random((3, *SHAPE))}, "of an array of shape .*float64.*need uint8"),
    ({"query_items": np.full((1, *SHAPE), 256)}, "the values go from 256 to 256; need 0 to 255"),
    ({"query_items": np.full((1, *SHAPE), -1).tolist()}, "of a list of 1, the values go from -1 to -1; need 0 to 255"),
    ({"query_items": []}, "found a list of 0; need at least one image"),
    ({"query_items": None}, "found NoneType; need an array or a list"),
    ({"query_items": [[[1, 2], [1]]]}, "one has rows of several lengths"),
    ({"pictures": []}, "found the inputs .*pictures; need support_items, support_labels, query_items"),
]


@pytest.mark.parametrize(("changed", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_wrong_call_is_refused_in_one_short_line(model: PyFuncModel, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(MlflowException, match=message) as caught:
        model.predict(asked(["a", "b", "b"], **changed))
    assert len(str(caught.value)) < LONGEST and "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [None, [1, 2], "text", np.zeros(3)], ids=repr)
def test_what_has_no_names_is_refused(model: PyFuncModel, given: Any) -> None:
    with pytest.raises(MlflowException, match="need the inputs by name: support_items"):
        model.predict(given)


@pytest.fixture(scope="module")
def server(model: PyFuncModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `mlflow models serve`, in a process of its own that finds kshot beside the model only."""
    port, folder = free_port(), tmp_path_factory.mktemp("server")
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(folder_of(model))]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            [*command, "--port", str(port), "--env-manager", "local", "--workers", "1"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            while not answers(f"http://127.0.0.1:{port}/ping"):
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            os.killpg(process.pid, signal.SIGTERM)


def folder_of(model: PyFuncModel) -> Path:
    return Path(str(model.metadata.artifact_path).removeprefix("file://"))


def posted(server: str, content: Any) -> tuple[int, str]:
    """Status and text of the answer."""
    question = Request(server, json.dumps(content).encode(), {"Content-Type": "application/json"})
    try:
        with urlopen(question, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_scoring_server_answers_with_class_names(server: str) -> None:
    given = {name: np.asarray(value).tolist() for name, value in asked(["b", "b", "ä"]).items()}
    for labels, classes in ((["b", "b", "ä"], ["b", "ä"]), ([1, 1, 0], ["0", "1"])):
        status, text = posted(server, {"inputs": {**given, "support_labels": labels}})
        assert status == 200, text
        rows = json.loads(text)["predictions"]
        assert [list(row) for row in rows] == [classes, classes]
        assert [sum(row.values()) for row in rows] == pytest.approx([1, 1])


def test_a_scoring_server_refuses_in_one_short_line(server: str) -> None:
    given = {name: np.asarray(value).tolist() for name, value in asked(["b", "b", "a"]).items()}
    for labels in ([True, 1, 0], [1, "a", 0], [0.5, 1, 0], [None, "a", "b"], [1, 2]):
        status, text = posted(server, {"inputs": {**given, "support_labels": labels}})
        assert status == 400 and len(text) < LONGEST, text
        assert json.loads(text)["message"].startswith("found labels of ")
    status, text = posted(server, {"inputs": {**given, "query_items": np.full((1, *SHAPE), 0.5).tolist()}})
    assert status == 400 and "float64" in json.loads(text)["message"] and len(text) < LONGEST


def test_the_stored_example_serves(model: PyFuncModel, server: str) -> None:
    payload = json.loads((folder_of(model) / "serving_input_example.json").read_text())
    assert set(payload["inputs"]) == {"support_items", "support_labels", "query_items"}
    status, text = posted(server, payload)
    assert status == 200, text
    assert list(json.loads(text)["predictions"][0]) == ["0", "1"]
