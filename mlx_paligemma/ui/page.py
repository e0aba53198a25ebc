"""The whole page: a line about the loaded model, and a tab for each thing to do."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr

from .ask_tab import AskTab
from .batch_tab import BatchTab
from .compare_tab import CompareTab, described
from .events import PRIVATE
from .model_tab import ModelTab
from .plain_text import in_markdown
from .shelf import MAIN
from .site import Site

TITLE = "PaliGemma"


def make_page(site: Site) -> gr.Blocks:
    """The page around the shelf's models. It asks nobody on the internet for anything."""
    kept = site.settings.files_kept
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(max(kept // 4, 1), kept)) as page:
        gr.Markdown(f"# {TITLE}", elem_classes="title")
        loaded = gr.Markdown("", elem_id="loaded", elem_classes="line")
        with gr.Tabs():
            with gr.Tab("Ask"):
                ask = AskTab(site)
            with gr.Tab("Many pictures"):
                BatchTab(site)
            if site.settings.can_swap:
                with gr.Tab("Compare"):
                    CompareTab(site)
                with gr.Tab("Model"):
                    model = ModelTab(site)
        changes = [page.load, *ask.changes] + ([model.loaded.then, model.unloaded.then] if site.settings.can_swap else [])
        for change in changes:
            change(lambda: _loaded(site), None, [loaded, *ask.backends], show_progress="hidden", **PRIVATE)
        page.unload(_leaving(site))
    return page


def _loaded(site: Site) -> list[str | None] | str:
    """The line about the loaded model; its backend where visitors can choose it."""
    runner = site.shelf.find(MAIN)
    line = "No model is loaded; load one in the tab Model." if runner is None else in_markdown(f"Model: {described(runner)}")
    return [line, runner.spec.backend if runner else None] if site.settings.can_swap else line


def _leaving(site: Site) -> Callable[[gr.Request], None]:
    """What is done when a visitor has closed the page: nobody waits for what it asked."""

    def left(request: gr.Request) -> None:
        for name in ("", "-batch", "-compare"):
            site.stops.request(f"{request.session_hash}{name}")

    return left
