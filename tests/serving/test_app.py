"""The interface over HTTP: what is asked and answered, and what is refused how."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.routing import Mount, Route

from kshot.serving.access import add_key, read_keys
from kshot.serving.settings import Limits, LogSettings, ServiceSettings
from tests.serving.small_service import PNG, Small, picture, small_service


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Small]:
    with small_service(tmp_path) as found:
        yield found


def test_a_new_class_is_known_from_the_next_request_on(small: Small) -> None:
    small.show(patterns=(1, 2))
    assert small.ask(2)["class"] == "pattern 2"
    small.show(patterns=(3,))
    answer = small.ask(3)
    assert answer["class"] == "pattern 3"
    assert answer["nearest"]["class"] == "pattern 3"  # type: ignore[index]
    assert sum(row["probability"] for row in answer["probabilities"]) == pytest.approx(1)  # type: ignore[attr-defined]


def test_a_picture_of_no_class_is_unknown_by_the_models_threshold(small: Small) -> None:
    small.show()
    shown = small.client.post("/v1/galleries/shapes/classify", content=picture(1, 0), headers=PNG).json()["answers"][0]
    assert shown["known"] == pytest.approx(0, abs=1e-5)  # the very example
    assert shown["unknown"] is False
    other = small.ask(7)
    assert other["unknown"] == (other["known"] < other["threshold"])  # type: ignore[operator]


def test_form_json_and_body_are_the_same_question(small: Small) -> None:
    small.show()
    path, asked = "/v1/galleries/shapes/classify", picture(2, 9)
    by_body = small.client.post(path, content=asked, headers=PNG)
    by_form = small.client.post(path, files=[("items", ("a.png", asked))])
    encoded = base64.b64encode(asked).decode()
    by_json = small.client.post(path, json={"items": [encoded, f"data:image/png;base64,{encoded}"]})
    first, second, *others = (answer for done in (by_body, by_form, by_json) for answer in done.json()["answers"])
    for answer in (second, *others):
        assert answer["class"] == first["class"] == "pattern 2"
        assert answer["known"] == pytest.approx(first["known"], abs=1e-5)
        assert answer["probability"] == pytest.approx(first["probability"], abs=1e-5)


def test_examples_and_questions_in_one_request_are_kept_nowhere(small: Small) -> None:
    pictures = {name: [base64.b64encode(picture(n, k)).decode() for k in range(2)] for n, name in enumerate("ab")}
    asked = [base64.b64encode(picture(1, 9)).decode()]
    by_json = small.client.post("/v1/classify", json={"support": pictures, "items": asked})
    files = [(f"support/{name}", ("x", picture(n, k))) for n, name in enumerate("ab") for k in range(2)]
    by_form = small.client.post("/v1/classify", files=[*files, ("items", ("q", picture(1, 9)))])
    assert by_json.json() == by_form.json()
    assert by_json.json()["answers"][0]["class"] == "b"
    assert small.client.get("/v1/galleries").json() == {"galleries": []}


def test_a_gallery_is_listed_renamed_and_deleted(small: Small) -> None:
    small.show(shots=1)
    client = small.client
    (first, _) = client.get("/v1/galleries/shapes").json()["classes"]
    path = f"/v1/galleries/shapes/classes/pattern 1/examples/{first['examples'][0]['id']}"
    shown = client.get(path)
    assert (shown.content, shown.headers["content-type"]) == (picture(1, 0), "image/png")
    assert client.post("/v1/galleries/shapes/classes/pattern 1/rename", json={"to": "spots"}).status_code == 200
    small.ask(1)
    assert [one["class"] for one in client.get("/v1/galleries/shapes").json()["classes"]] == ["pattern 2", "spots"]
    assert client.delete(path.replace("pattern 1", "spots")).status_code == 204
    assert client.delete("/v1/galleries/shapes/classes/pattern 2").status_code == 204
    assert client.get("/v1/galleries/shapes").json()["classes"] == []
    assert client.delete("/v1/galleries/shapes").status_code == 204
    assert client.get("/v1/galleries/shapes").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "words"),
    [
        ("GET", "/v1/galleries/none", {}, 404, "no gallery 'none'"),
        ("GET", "/v1/none", {}, 404, "Not Found"),
        ("PATCH", "/v1/galleries", {}, 405, "Method Not Allowed"),
        ("PUT", "/v1/galleries/a%20b", {}, 422, "gallery name"),
        ("POST", "/v1/galleries/shapes/classify", {"content": b"x", "headers": PNG}, 422, "not a PNG"),
        ("POST", "/v1/galleries/shapes/classify", {"content": b"", "headers": PNG}, 422, "0 bytes"),
        ("POST", "/v1/galleries/shapes/classify", {"content": b"x"}, 415, "content type ''"),
        ("POST", "/v1/galleries/shapes/classify", {"json": {"items": []}}, 400, "no item"),
        ("POST", "/v1/galleries/shapes/classify", {"json": {"items": ["%%"]}}, 400, "not base64"),
        ("POST", "/v1/galleries/shapes/classify", {"json": {"items": [{}]}}, 400, "an item of type dict"),
        ("POST", "/v1/galleries/shapes/classify", {"json": {"items": [[1, 2, 3]]}}, 422, "a NumPy array"),
        ("POST", "/v1/galleries/shapes/classify", {"json": {"items": [[10**400]]}}, 400, "number"),
        ("POST", "/v1/galleries/shapes/classify?top=0", {"content": picture(1), "headers": PNG}, 422, "query.top"),
        ("POST", "/v1/galleries/lonely/classify", {"content": picture(1), "headers": PNG}, 409, "at least 2 classes"),
        ("POST", "/v1/classify", {"json": {"support": {"a": []}, "items": ["eA=="]}}, 409, "0 class"),
        ("POST", "/v1/classify", {"json": {"support": [], "items": []}}, 400, "support of type list"),
        ("POST", "/v1/feedback", {"json": {"id": "1"}}, 400, "id, class"),
        ("POST", "/v1/feedback", {"json": {"id": "1", "class": "a"}}, 422, "the id of an answer"),
        ("PUT", "/v1/galleries/shapes/classes/%0A/examples", {"content": picture(1), "headers": PNG}, 422, "U+000A"),
        ("POST", "/v1/galleries/shapes/classes/pattern 1/rename", {"json": {"to": "pattern 2"}}, 422, "already"),
    ],
)
def test_what_cannot_be_answered_is_a_problem_document(
    small: Small, method: str, path: str, sent: dict[str, Any], status: int, words: str
) -> None:
    small.show(shots=1)
    small.show("lonely", patterns=(1,))
    done = small.client.request(method, path, **sent)
    assert done.status_code == status, done.text
    assert done.headers["content-type"] == "application/problem+json"
    problem = done.json()
    assert problem["status"] == status
    assert words in problem["detail"]


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"items": NaN}', b"\xff", b"{", b'"text"', b"null"])
def test_json_that_is_none_is_refused(small: Small, body: bytes) -> None:
    small.show(shots=1)
    done = small.client.post(
        "/v1/galleries/shapes/classify", content=body, headers={"Content-Type": "application/json"}
    )
    assert done.status_code == 400


def test_limits_are_kept_before_anything_is_worked_on(tmp_path: Path) -> None:
    limits = Limits(body_mib=1, items=3, megapixels=0.01, galleries=2, classes=2, examples=4)
    with small_service(tmp_path, settings=ServiceSettings(limits=limits)) as small:
        small.show(shots=1)
        small.client.put("/v1/galleries/second")
        path = "/v1/galleries/shapes/classify"
        refused = {
            "bytes": small.client.post(path, content=b"x" * (2**20 + 1), headers=PNG),
            "unsaid": small.client.post(path, content=iter([b"x" * 2**19] * 3), headers=PNG),
            "items": small.client.post(path, files=[("items", ("a", picture(1)))] * 4),
            "pixels": small.client.post(path, content=picture(1, size=104), headers=PNG),
            "galleries": small.client.put("/v1/galleries/third"),
            "classes": small.client.put("/v1/galleries/shapes/classes/c/examples", content=picture(3), headers=PNG),
            "examples": small.client.put(
                "/v1/galleries/shapes/classes/pattern 1/examples",
                files=[("i", ("a", picture(1, n))) for n in (5, 6, 7)],
            ),
        }
        found = {name: (done.status_code, done.json().get("found", "")) for name, done in refused.items()}
        assert {name: status for name, (status, _) in found.items()} == {
            "bytes": 413, "unsaid": 413, "items": 413, "pixels": 413, "galleries": 422, "classes": 422, "examples": 422,
        }  # fmt: skip
        assert found["pixels"][1] == "a picture of 104x104 pixels"
        assert len(small.store.contents("shapes").examples) == 2


def all_routes(small: Small) -> list[tuple[str, str]]:
    """Every route of the application, also of what is mounted into it, and an address that is none."""
    found = [("GET", "/none"), ("GET", "/page.js"), ("GET", "/static-offline-docs/swagger-ui.css")]
    for route in small.gate.app.routes:  # type: ignore[attr-defined]
        if isinstance(route, Mount):
            found.append(("GET", f"{route.path}/"))
        elif isinstance(route, Route):
            path = route.path.replace("{", "").replace("}", "")
            found += [(method, path) for method in route.methods or ()]
    return found


def test_every_route_denies_without_a_key_but_those_of_health(tmp_path: Path) -> None:
    add_key(tmp_path / "keys", "camera", write=False)
    with small_service(tmp_path, keys=read_keys(tmp_path / "keys")) as small:
        routes = all_routes(small)
        assert len(routes) > 20
        answers = {(method, path): small.client.request(method, path).status_code for method, path in routes}
        assert {path for (_, path), status in answers.items() if status != 401} == {"/healthz", "/readyz"}


def test_a_key_to_read_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    reading, writing = add_key(file, "camera", write=False), add_key(file, "line", write=True)
    with small_service(tmp_path, keys=read_keys(file)) as small:
        small.client.headers["Authorization"] = f"Bearer {writing}"
        small.show()
        small.client.headers["Authorization"] = f"Bearer {reading}"
        assert small.ask(1)["class"] == "pattern 1"
        for method, path in all_routes(small):
            if method in ("PUT", "DELETE") or path.endswith(("rename", "feedback")):
                assert small.client.request(method, path).status_code == 403, path
        assert len(small.store.contents("shapes").examples) == 4


def test_another_site_and_another_name_are_refused(tmp_path: Path) -> None:
    with small_service(tmp_path, hosts=frozenset({b"localhost"})) as small:
        assert small.client.get("/v1/galleries", headers={"Origin": "http://localhost"}).status_code == 200
        assert small.client.get("/v1/galleries", headers={"Origin": "https://evil.example"}).status_code == 403
        assert small.client.get("/v1/galleries", headers={"Host": "evil.example"}).status_code == 421
        assert small.client.get("/v1/galleries", headers={"Host": "localhost:8400"}).status_code == 200


def test_answers_are_marked_and_hardened(small: Small) -> None:
    done = small.client.get("/")
    assert done.status_code == 200 and "kshot" in done.text
    assert done.headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in done.headers["content-security-policy"]
    assert len(done.headers["x-request-id"]) == 32


def test_metrics_count_answers_by_route(small: Small) -> None:
    small.show(shots=1)
    small.ask(1)
    text = small.client.get("/metrics").text
    route = 'method="POST",route="/v1/galleries/{gallery}/classify",status="200"'
    assert f"kshot_requests_total{{{route}}} 1.0" in text
    assert "kshot_waiting 0.0" in text


def test_the_interface_page_needs_no_other_host(small: Small) -> None:
    page = small.client.get("/docs").text
    assert "static-offline-docs/swagger-ui-bundle.js" in page
    assert "https://" not in page
    schema = small.client.get("/openapi.json").json()
    classify = schema["paths"]["/v1/galleries/{gallery}/classify"]["post"]
    assert set(classify["requestBody"]["content"]) == {"multipart/form-data", "application/json", "image/*"}


def test_answers_and_corrections_are_kept_without_pictures(tmp_path: Path) -> None:
    import pyarrow.dataset

    settings = ServiceSettings(log=LogSettings(flush_s=1000))
    with small_service(tmp_path, settings=settings) as small:
        small.show()
        answer = small.ask(2)
        done = small.client.post("/v1/feedback", json={"id": answer["id"], "class": "pattern 5"})
        assert done.status_code == 202
    rows = pyarrow.dataset.dataset(tmp_path / "answers" / "answers").to_table().to_pylist()
    assert [(row["id"], row["class_name"], row["gallery"], row["model"], row["picture"]) for row in rows] == [
        (answer["id"], "pattern 2", "shapes", "models:/patterns/1", None)
    ]
    assert np.array(rows[0]["features"]).shape == (8,)
    corrections = pyarrow.dataset.dataset(tmp_path / "answers" / "feedback").to_table().to_pylist()
    assert [(row["id"], row["class_name"]) for row in corrections] == [(answer["id"], "pattern 5")]


def test_a_service_without_a_log_says_that_it_keeps_no_feedback(tmp_path: Path) -> None:
    with small_service(tmp_path, settings=ServiceSettings(log=LogSettings(keep=False))) as small:
        small.show()
        assert small.ask(1)["id"] == ""
        done = small.client.post("/v1/feedback", json={"id": "0" * 32, "class": "a"})
        assert done.status_code == 409
    assert not (tmp_path / "answers").exists()


def test_a_storage_that_fails_is_a_503_and_not_a_fault(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    small.show()
    monkeypatch.setattr(small.store, "add", broken)
    done = small.client.put("/v1/galleries/shapes/classes/x/examples", content=picture(1), headers=PNG)
    assert (done.status_code, done.headers["retry-after"]) == (503, "5")
    assert small.ask(1)["class"] == "pattern 1"


def test_a_fault_is_said_without_its_reason(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret path /etc")

    monkeypatch.setattr(small.store, "names", broken)
    done = small.client.get("/v1/galleries")
    assert done.status_code == 500
    assert "secret" not in done.text
    assert json.loads(done.text)["title"] == "a fault of the service"
