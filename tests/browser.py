"""Opens pages in a real browser, where the machine has one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.tools import lacking

WIDTHS_PX = (390, 1280)


@dataclass(frozen=True)
class Opened:
    page: Page
    complaints: list[str]  # of the console, and errors that nothing caught
    requests: list[str]  # addresses asked for, but those inside the page


@contextmanager
def opened(file: Path, width_px: int) -> Iterator[Opened]:
    """The file by its file:// address, as a window of that width shows it; needs Chromium."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        lacking("Chromium (CHROMIUM names one elsewhere)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width_px, "height": 900})
        found = Opened(page, [], [])
        page.on("console", lambda message: found.complaints.append(message.text))
        page.on("pageerror", lambda error: found.complaints.append(str(error)))
        page.on("request", lambda request: found.requests.append(request.url))
        page.goto(file.as_uri(), wait_until="networkidle")
        found.requests[:] = [url for url in found.requests if not url.startswith("data:") and url != file.as_uri()]
        yield found
        browser.close()


def check_stands_alone(file: Path) -> None:
    """No complaint, nothing asked of a network, no sideways scrolling and every picture shown, at every width."""
    for width_px in WIDTHS_PX:
        with opened(file, width_px) as seen:
            assert (seen.complaints, seen.requests) == ([], [])
            overflow_px = seen.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert overflow_px <= 0, f"{overflow_px} px too wide at {width_px}"
            assert seen.page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
