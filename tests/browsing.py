"""The page in a thread of this process, and Debian's or whoever's Chromium to look at it."""

from __future__ import annotations

import os
import shutil
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

DEMO = Path(__file__).parent.parent / "mlx_paligemma" / "demo"
SHAPES = DEMO / "shapes.png"
SECONDS = 20


@dataclass
class Showing:
    """A page that is shown."""

    address: str
    site: object

    @property
    def engine(self):
        """Of the loaded model; it is what tests/serving.py slows."""
        return self.site.shelf.get()._loaded[0]


@contextmanager
def showing(folder: Path, address=None, **settings):
    """`with showing(folder, can_swap=False) as page:`; all that it writes is in the folder."""
    from mlx_paligemma.ui.launch import Address, show
    from mlx_paligemma.ui.model_spec import ModelSpec
    from mlx_paligemma.ui.settings import Settings
    from mlx_paligemma.ui.shelf import Shelf
    from mlx_paligemma.ui.site import Site

    kept = {"GRADIO_TEMP_DIR": str(folder / "gradio"), "GRADIO_ANALYTICS_ENABLED": "False"}
    with mock.patch.dict(os.environ, kept), closing(Shelf()) as shelf:
        list(shelf.load(ModelSpec()))
        site = Site(shelf, Settings(**settings), folder / "files")
        with closing(show(site, address or Address(port=0))) as shown:
            yield Showing(shown.local.rstrip("/"), site)


@contextmanager
def chromium():
    """A browser without a window. Skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    program = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if program is None:
        pytest.skip("needs chromium")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def visiting(browser, showing, width=1280, height=900, scheme="light"):
    """A visitor of its own. Its browser must ask nobody but the page, and find no fault with it."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.set_default_timeout(SECONDS * 1000)
    asked, faults = [], []
    page = context.new_page()
    context.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
    try:
        page.goto(showing.address)
        page.locator("#loaded").get_by_text("Model: ").wait_for()
        yield page
        assert [url for url in asked if not url.startswith((showing.address, "data:", "blob:http://127.0.0.1"))] == []
        assert faults == []
    finally:
        context.close()


def tab(page, name: str) -> None:
    """Go to a tab, which may be behind the three dots of a narrow page."""
    button = page.get_by_role("tab", name=name, exact=True)
    if button.is_visible():
        button.click()
    else:
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown").get_by_text(name).click()


def upload(page, *files, place: str = ".picture >> visible=true") -> None:
    """Files into the open tab's picture, or into another place."""
    with page.expect_response(lambda response: "/upload" in response.url and response.request.method == "POST"):
        page.locator(place).locator("input[type=file]").set_input_files(list(files))


def write(page, task: str, text: str = "", name: str = "ask") -> None:
    """The task and its text in a tab."""
    page.locator(f"#{name}-task").get_by_label(task, exact=True).check()
    if text:
        page.locator(f"#{name}-text textarea").fill(text)


def ask(page, task: str, text: str = "") -> str:
    """The whole answer to a question about the picture that is there."""
    write(page, task, text)
    page.locator("#ask").click()
    return answer_of(page)


def answer_of(page) -> str:
    """What is answered when the files of the answer are there."""
    page.locator("#files a").first.wait_for()
    return page.locator("#answer textarea").input_value()
