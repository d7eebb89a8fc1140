"""Galleries and models over time: what is kept adapted, what is adapted again, and when another model answers."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path

import pytest

from kshot.serving.adapted import Memory
from kshot.serving.files import FolderFiles
from kshot.serving.galleries import GalleryStore
from kshot.serving.settings import ServiceSettings
from tests.serving.small_service import GREY, PNG, Small, picture, served_model, small_service


def eventually(found: Callable[[], object], wanted: object) -> None:
    """A test that waits in vain ends by the suite's time-out."""
    while found() != wanted:
        time.sleep(0.02)


def answers(small: Small, gallery: str = "shapes") -> list[object]:
    rows = []
    for pattern in (1, 2, 3):
        answer = small.ask(pattern, gallery)
        answer.pop("id")
        rows.append(answer)
    return rows


def test_a_gallery_is_adapted_once(tmp_path: Path) -> None:
    with small_service(tmp_path) as small:
        small.show()
        small.ask(1)
        kept = small.service.adapted.get("shapes")
        small.ask(2)
        assert small.service.adapted.get("shapes") is kept is not None


def test_what_another_process_adds_is_known_at_the_next_request(tmp_path: Path) -> None:
    with small_service(tmp_path) as small:
        small.show()
        small.ask(3)
        other = GalleryStore(FolderFiles(tmp_path / "galleries"))
        other.add("shapes", "by another", [picture(3, n) for n in range(2)], GREY)
        assert small.ask(3)["class"] == "by another"


def test_eviction_and_a_restart_change_no_answer(tmp_path: Path) -> None:
    with small_service(tmp_path) as small:
        small.show("first")
        small.show("second", patterns=(2, 3))
        before = answers(small, "first")
        small.service.adapted.forget("first")
        answers(small, "second")
        assert answers(small, "first") == before
    with small_service(tmp_path) as small:
        assert answers(small, "first") == before


def test_an_example_that_is_added_later_is_as_if_it_had_been_there(tmp_path: Path) -> None:
    """Features of the others are taken from before."""
    with small_service(tmp_path / "later") as small:
        small.show(shots=1)
        small.ask(1)
        small.show(shots=3)
        later = answers(small)
    with small_service(tmp_path / "at once") as small:
        small.show(shots=3)
        assert answers(small) == later


def test_the_least_used_is_forgotten_when_there_are_too_many_bytes() -> None:
    memory: Memory[str] = Memory(10)
    memory.put("a", "A", 4)
    memory.put("b", "B", 4)
    assert memory.get("a") == "A"
    memory.put("c", "C", 4)
    assert memory.names() == ["a", "c"] and memory.n_bytes == 8
    memory.put("large", "L", 100)  # which alone is too much, and still of use
    assert memory.names() == ["large"]


def test_a_new_champion_answers_in_place_of_the_old_and_galleries_are_adapted_before(tmp_path: Path) -> None:
    with small_service(tmp_path, settings=ServiceSettings(watch_s=0.05)) as small:
        small.show()
        before = small.ask(1)
        small.source.model = served_model("models:/patterns/2", seed=1)
        eventually(lambda: small.client.get("/readyz").json()["model"], "models:/patterns/2")
        kept = small.service.adapted.get("shapes")
        assert kept is not None and kept.model.name == "models:/patterns/2"
        assert small.ask(1)["known"] != before["known"]
        small.source.model = served_model("models:/patterns/1")  # a rollback
        eventually(lambda: small.client.get("/readyz").json()["model"], "models:/patterns/1")
        assert small.ask(1)["known"] == before["known"]


def test_a_model_that_cannot_be_served_leaves_the_old_one_in_place_and_is_named(tmp_path: Path) -> None:
    with small_service(tmp_path, settings=ServiceSettings(watch_s=0.05)) as small:
        small.show()
        small.source.model, small.source.error = served_model("models:/patterns/2"), "its weights are others"
        eventually(lambda: small.client.get("/readyz").json()["trouble"], "its weights are others")
        assert small.client.get("/readyz").json()["model"] == "models:/patterns/1"
        assert small.ask(1)["class"] == "pattern 1"
        small.source.model, small.source.error = served_model("models:/patterns/3"), ""
        eventually(lambda: small.client.get("/readyz").json()["model"], "models:/patterns/3")
        assert small.client.get("/readyz").json()["trouble"] == ""


def test_a_change_of_the_model_says_whether_it_knows_the_gallery_better(tmp_path: Path) -> None:
    with small_service(tmp_path, settings=ServiceSettings(watch_s=0.05)) as small:
        small.show(shots=3)
        small.ask(1)
        small.source.model = served_model("models:/patterns/2", seed=1)
        eventually(lambda: small.client.get("/readyz").json()["model"], "models:/patterns/2")
        notes = tmp_path / "galleries" / "shapes" / "notes"
        eventually(lambda: len(list(notes.glob("*.json"))) if notes.is_dir() else 0, 2)
        change = small.client.get("/v1/galleries/shapes/quality").json()["change"]
        assert (change["before"], change["examples"]) == ("models:/patterns/1", 6)
        assert change["verdict"] in ("better", "worse", "the same")


def test_quality_counts_examples_that_the_others_know(tmp_path: Path) -> None:
    with small_service(tmp_path) as small:
        small.show(patterns=(1, 2), shots=3)
        path = "/v1/galleries/shapes/classes/pattern 1/examples"
        small.client.put(path, content=picture(2, 50), headers=PNG)  # one that looks like the other class
        found = small.client.get("/v1/galleries/shapes/quality").json()
        assert found["examples"] == 7
        assert found["accuracy"] == pytest.approx(6 / 7)
        assert found["confused"] == [{"class": "pattern 1", "told": "pattern 2", "times": 1}]
        low, high = found["interval"]
        assert 0.4 < low < 6 / 7 < high < 1
        assert small.client.get("/v1/galleries/shapes/quality").json() == found


def test_a_gallery_of_single_examples_has_no_quality_yet(tmp_path: Path) -> None:
    with small_service(tmp_path) as small:
        small.show(shots=1)
        found = small.client.get("/v1/galleries/shapes/quality").json()
        assert (found["examples"], found["accuracy"], found["interval"]) == (0, None, None)


def test_a_promotion_and_a_rollback_under_load_fail_no_request_and_the_version_changes_once_each(
    tmp_path: Path,
) -> None:
    with small_service(tmp_path, settings=ServiceSettings(watch_s=0.05)) as small:
        small.show()
        seen: list[list[str]] = [[] for _ in range(3)]
        ended = threading.Event()

        def keep_asking(models: list[str]) -> None:
            while not ended.is_set():
                done = small.client.post("/v1/galleries/shapes/classify", content=picture(1, 9), headers=PNG)
                assert done.status_code == 200, done.text
                models.append(done.json()["model"])

        with ThreadPoolExecutor(len(seen)) as pool:
            asking = [pool.submit(keep_asking, models) for models in seen]
            for version, seed in ((2, 1), (1, 0)):
                small.source.model = served_model(f"models:/patterns/{version}", seed=seed)
                eventually(lambda wanted=small.source.model.name: small.service.model.name == wanted, True)  # type: ignore[misc]
                n_before = [len(models) for models in seen]
                eventually(lambda n=n_before: all(len(m) > k for m, k in zip(seen, n, strict=True)), True)  # type: ignore[misc]
            ended.set()
            for one in asking:
                one.result()
        for models in seen:
            assert [name for name, _ in groupby(models)] in (
                ["models:/patterns/1", "models:/patterns/2", "models:/patterns/1"],
                ["models:/patterns/2", "models:/patterns/1"],  # began to ask after the first change
            )
