"""Draws docs/ui.png and docs/ui-phone.png: the page after a question about the bundled example picture.

Usage: python scripts/draw_ui_pictures.py [FOLDER]        needs playwright and a Chromium that it can drive
"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import closing
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from mlx_paligemma.ui.launch import Address, show
from mlx_paligemma.ui.model_spec import ModelSpec
from mlx_paligemma.ui.settings import Settings
from mlx_paligemma.ui.shelf import Shelf
from mlx_paligemma.ui.site import Site

PICTURES = {"ui.png": (1280, 1220, "light"), "ui-phone.png": (390, 1220, "dark")}  # width, height, colours
PHONE_SCALE = 1.5  # pixels of the picture per pixel of the page
BROWSERS = ("chromium", "google-chrome", "chromium-browser")


def main(out: Path) -> None:
    """Show the demo model's page to a browser without a window."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    with TemporaryDirectory() as folder, closing(Shelf()) as shelf, sync_playwright() as play:
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        list(shelf.load(ModelSpec()))
        site = Site(shelf, Settings(), Path(folder) / "files")
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        with closing(show(site, Address(port=0))) as shown, closing(browser):
            for name, (width, height, scheme) in PICTURES.items():
                scale = PHONE_SCALE if width < 640 else 1
                size = {"width": width, "height": height}
                page = browser.new_page(viewport=size, color_scheme=scheme, device_scale_factor=scale)
                page.goto(shown.local)
                _ask(page)
                _save(page.screenshot(), out / name)


def _ask(page: Page) -> None:
    """The example `segment heart ; star`; the page is left at its answer."""
    page.get_by_text("heart ; star").click()
    page.locator("#files a").first.wait_for()
    page.locator("#found img.mask").last.wait_for()
    page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(1500)  # the page moves to the answer by and by
    page.evaluate("innerWidth > 640 ? scrollTo(0, 0) : document.querySelector('#ask').scrollIntoView()")
    page.mouse.move(0, 0)
    page.wait_for_timeout(500)


def _save(screenshot: bytes, target: Path) -> None:
    """With 256 colours, which is a third of the size."""
    Image.open(BytesIO(screenshot)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs"))
