"""The page of a service in a real browser: what a new user does, by mouse and by keyboard, on a desk and on a phone."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect, sync_playwright

from tests.browser import WIDTHS_PX
from tests.serving.service_process import Running, running
from tests.serving.small_service import picture
from tests.tools import lacking


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path) as found:
        yield found


@contextmanager
def page_of(service: Running, width_px: int, scheme: str = "light") -> Iterator[Page]:
    """The page, which may complain of nothing and ask no other host."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        lacking("Chromium (CHROMIUM names one elsewhere)")
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": width_px, "height": 900},
            color_scheme=scheme,  # type: ignore[arg-type]
        )
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.extend(_elsewhere(request.url, service)))
        page.goto(service.url, wait_until="networkidle")
        yield page
        browser.close()
    assert [words for words in complaints if "422" not in words] == []  # a refused picture is shown, and logged


def _elsewhere(url: str, service: Running) -> list[str]:
    return [] if url.startswith((service.url, "data:", "blob:")) else [url]


def files(tmp_path: Path, pattern: int, count: int) -> list[Path]:
    found = []
    for number in range(count):
        found.append(tmp_path / f"pattern-{pattern}-{number}.png")
        found[-1].write_bytes(picture(pattern, number))
    return found


def show_two_classes(page: Page, tmp_path: Path) -> None:
    for name, pattern in (("dots", 1), ("stripes", 2)):
        page.get_by_label("New class").fill(name)
        page.locator("#class-files").set_input_files(files(tmp_path, pattern, 5))
        expect(page.get_by_role("heading", name=name)).to_be_visible()


@pytest.mark.parametrize("width_px", WIDTHS_PX)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_two_classes_from_ten_pictures_are_told_apart(
    service: Running, tmp_path: Path, width_px: int, scheme: str
) -> None:
    with page_of(service, width_px, scheme) as page:
        expect(page.get_by_text("Name a class and choose a few pictures of it.")).to_be_visible()
        show_two_classes(page, tmp_path)
        page.locator("#ask-files").set_input_files(files(tmp_path, 2, 7)[6:])
        card = page.locator("#answers article").first
        expect(card.locator(".answer")).to_have_text("stripes")
        expect(card.get_by_alt_text("Nearest example, of stripes")).to_be_visible()
        page.get_by_role("button", name="How well are they told apart?").click()
        expect(page.locator("#quality")).to_contain_text("Of 10 pictures, 100 % are known by the others")
        overflow_px = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert overflow_px <= 0
        assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        page.screenshot(path=tmp_path / f"page-{width_px}-{scheme}.png", full_page=True)


def test_a_picture_that_cannot_be_read_is_said_and_the_page_goes_on(service: Running, tmp_path: Path) -> None:
    with page_of(service, WIDTHS_PX[1]) as page:
        show_two_classes(page, tmp_path)
        (tmp_path / "no.png").write_bytes(b"nonsense")
        page.locator("#ask-files").set_input_files(tmp_path / "no.png")
        expect(page.get_by_role("alert")).to_contain_text("not a PNG")
        page.locator("#ask-files").set_input_files(files(tmp_path, 1, 1))
        expect(page.locator("#answers .answer").first).to_have_text("dots")
        expect(page.get_by_role("alert")).to_be_hidden()


def test_everything_is_reached_by_keyboard_in_the_order_of_the_page(service: Running, tmp_path: Path) -> None:
    with page_of(service, WIDTHS_PX[1]) as page:
        show_two_classes(page, tmp_path)
        page.locator("#gallery").focus()
        reached = ["gallery"]
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.ariaLabel || ''"))
        order = [
            "gallery",
            "new-gallery",
            "class-name",
            "class-files",
            "Rename dots",
            "Delete stripes",
            "check",
            "ask-files",
        ]
        places = [reached.index(name) for name in order]
        assert places == sorted(places)


def test_an_example_and_a_class_are_removed_and_an_answer_is_corrected(service: Running, tmp_path: Path) -> None:
    with page_of(service, WIDTHS_PX[1]) as page:
        show_two_classes(page, tmp_path)
        page.get_by_role("button", name="Remove example 1 of dots").click()
        expect(page.locator("article", has_text="dots").locator(".thumbs li")).to_have_count(4)
        page.once("dialog", lambda dialog: dialog.accept("spots"))
        page.get_by_role("button", name="Rename dots").click()
        expect(page.get_by_role("heading", name="spots")).to_be_visible()
        page.locator("#ask-files").set_input_files(files(tmp_path, 1, 1))
        page.once("dialog", lambda dialog: dialog.accept("stripes"))
        page.get_by_role("button", name="Say what this picture really is").click()
        expect(page.get_by_text("Noted: stripes")).to_be_visible()
        page.once("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="Delete spots").click()
        expect(page.get_by_text("1 more class until you can ask.")).to_be_visible()


def test_names_are_shown_as_text_and_never_run(service: Running, tmp_path: Path) -> None:
    with page_of(service, WIDTHS_PX[1]) as page:
        page.get_by_label("New class").fill("<img src=x onerror=alert(1)>")
        page.locator("#class-files").set_input_files(files(tmp_path, 1, 1))
        expect(page.get_by_role("heading", name="<img src=x onerror=alert(1)>")).to_be_visible()
