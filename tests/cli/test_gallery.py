"""kshot gallery against a service that runs."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kshot.cli.gallery import app
from kshot.client import Client
from kshot.errors import ConfigError, DataError, RefusedError, UserError
from tests.serving.service_process import running
from tests.serving.small_service import picture

Gallery = Callable[..., str]


@pytest.fixture
def gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gallery]:
    with running(tmp_path) as service:
        monkeypatch.setenv("KSHOT_SERVICE_URL", service.url)

        def run(*arguments: str | Path) -> str:
            done = CliRunner().invoke(app, [str(word) for word in arguments], catch_exceptions=False)
            assert done.exit_code == 0, done.output
            return done.output

        yield run


def files(folder: Path, pattern: int, numbers: range) -> list[Path]:
    found = [folder / f"{pattern}-{number}.png" for number in numbers]
    for number, path in zip(numbers, found, strict=True):
        path.write_bytes(picture(pattern, number))
    return found


def test_a_gallery_is_made_asked_looked_at_and_taken_home(gallery: Gallery, tmp_path: Path) -> None:
    assert gallery("add", "shapes", "dots", *files(tmp_path, 1, range(10))) == "10 examples of dots in shapes\n"
    gallery("add", "shapes", "stripes", *files(tmp_path, 2, range(2)))
    assert gallery("list") == "shapes\n"
    assert gallery("list", "shapes") == "dots: 10 examples\nstripes: 2 examples\n"
    (asked,) = files(tmp_path, 2, range(9, 10))
    assert "stripes" in gallery("ask", "shapes", asked)
    assert gallery("quality", "shapes").startswith("100.0% of 12 examples (")
    gallery("rename", "shapes", "dots", "spots")
    assert f"next: kshot ingest {tmp_path / 'home'} --name shapes" in gallery("export", "shapes", tmp_path / "home")
    assert {path.name: len(list(path.iterdir())) for path in (tmp_path / "home").iterdir()} == {
        "spots": 10,
        "stripes": 2,
    }
    gallery("delete", "shapes", "spots")
    gallery("delete", "shapes")
    assert gallery("list") == ""


def test_answers_that_were_corrected_go_home_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, asked = tmp_path / "service.yaml", picture(2, 9)
    settings.write_text("log: {pictures: true, flush_s: 0.1}\n")
    runner = CliRunner()
    with running(tmp_path, "--settings", str(settings)) as service, Client(service.url) as client:
        monkeypatch.setenv("KSHOT_SERVICE_URL", service.url)
        client.add("shapes", "dots", [picture(1, 0), picture(1, 1)])
        client.add("shapes", "stripes", [picture(2, 0)])
        (first,), (again,) = client.classify("shapes", [asked]), client.classify("shapes", [picture(1, 1)])
        log = tmp_path / ".kshot" / "answers"
        with pytest.raises(DataError, match=r"no answer about the gallery 'shapes' in .* has feedback; need some"):
            runner.invoke(app, ["export", "shapes", str(tmp_path / "a"), "--answers", str(log)], catch_exceptions=False)
        client.correct(first["id"], "dots")
        client.correct(first["id"], "waves")
        client.correct(again["id"], "dots")
        (third,) = client.classify("shapes", [picture(1, 2)])
        for name in ("a/b", "", " waves", "x" * 101):
            with pytest.raises(RefusedError, match="class name"):
                client.correct(third["id"], name)
        client.correct(third["id"], "..")  # a class like any other, and no folder above
        service.stop()
    with running(tmp_path) as service:
        monkeypatch.setenv("KSHOT_SERVICE_URL", service.url)
        command = ["export", "shapes", str(tmp_path / "home"), "--answers", str(log)]
        done = runner.invoke(app, command, catch_exceptions=False)
    assert done.output.startswith("3 examples and 3 corrected answers in ")
    found = {path.name: {file.read_bytes() for file in path.iterdir()} for path in (tmp_path / "home").iterdir()}
    assert found == {
        "dots": {picture(1, 0), picture(1, 1)},
        "stripes": {picture(2, 0)},
        "waves": {asked},
        "%2E.": {picture(1, 2)},
    }


def test_what_cannot_be_done_is_one_line(gallery: Gallery, tmp_path: Path) -> None:
    gallery("add", "shapes", "dots", *files(tmp_path, 1, range(1)))
    gallery("add", "shapes", "stripes", *files(tmp_path, 2, range(1)))
    with pytest.raises(UserError, match=r"need two of some; next: kshot gallery add shapes CLASS FILES"):
        gallery("quality", "shapes")
    with pytest.raises(ConfigError, match=r"is there already; need a new folder"):
        gallery("export", "shapes", tmp_path)
