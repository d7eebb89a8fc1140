"""The client against a service: what each call sends and gives, over the same interface."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kshot.client import Client
from kshot.errors import KshotError, RefusedError, UserError
from tests.serving.small_service import Small, picture, small_service


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with small_service(tmp_path) as small:
        yield connected(small)


def connected(small: Small) -> Client:
    found = Client("http://localhost")
    found._http = small.client  # the same requests, without a socket
    return found


def test_examples_are_added_asked_renamed_and_deleted(client: Client, tmp_path: Path) -> None:
    for pattern in (1, 2):
        file = tmp_path / f"{pattern}.png"
        file.write_bytes(picture(pattern))
        assert len(client.add("shapes", f"pattern {pattern}", [file, picture(pattern, 1)])) == 2
    answers = client.classify("shapes", [picture(2, 9), picture(1, 9)], top=1)
    assert [answer["class"] for answer in answers] == ["pattern 2", "pattern 1"]
    assert [len(answer["probabilities"]) for answer in answers] == [1, 1]
    client.correct(answers[0]["id"], "pattern 1")
    client.rename("shapes", "pattern 1", "spots")
    classes = client.classes("shapes")
    assert list(classes) == ["pattern 2", "spots"]
    assert client.example("shapes", "spots", classes["spots"][0]) in (picture(1), picture(1, 1))
    assert client.quality("shapes")["examples"] == 4
    client.delete("shapes", "spots")
    client.delete("shapes")
    assert client.galleries() == []


def test_nothing_is_kept_of_examples_that_come_with_the_question(client: Client) -> None:
    support = {f"pattern {pattern}": [picture(pattern)] for pattern in (1, 2)}
    assert client.classify_once(support, [picture(2, 9)])[0]["class"] == "pattern 2"
    assert client.galleries() == []


def test_what_the_service_refuses_is_one_line(client: Client, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"refuses: no gallery 'none'") as refused:
        client.classes("none")
    assert refused.value.status == 404
    with pytest.raises(UserError, match="none.png cannot be read"):
        client.add("shapes", "a", [tmp_path / "none.png"])


def test_a_service_that_is_not_there_is_one_line() -> None:
    with pytest.raises(KshotError, match=r"no answer from http://127.0.0.1:9 .*; next: kshot serve"):
        Client("http://127.0.0.1:9").galleries()
