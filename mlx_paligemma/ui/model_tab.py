"""The tab where models are loaded and swapped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ..backends import NAMES
from .events import PRIVATE, Update, telling
from .model_spec import AS_STORED, DEMO, DTYPES, ModelSpec
from .plain_text import in_markdown
from .shelf import MAIN, needed
from .site import Site

SUGGESTED = (
    DEMO,
    "google/paligemma2-3b-mix-224",
    "google/paligemma2-3b-mix-448",
    "google/paligemma2-10b-mix-448",
    "google/paligemma-3b-mix-224",
    "google/paligemma-3b-mix-448",
)


class ModelTab:
    """Made in the block that is open when it is constructed. `loaded` is an event after which another model is there."""

    def __init__(self, site: Site, place: str = MAIN):
        self._site, self._place = site, place
        self._fields = _fields(place)
        with gr.Row(elem_classes="actions"):
            check = gr.Button("Check memory", min_width=100)
            load = gr.Button("Load", variant="primary", min_width=100, elem_id=f"load-{place}")
            unload = gr.Button("Unload", min_width=100, elem_id=f"unload-{place}")
        self._status = gr.Markdown("", elem_id=f"status-{place}", elem_classes="line")
        checked = telling(self._checking, self._status, {})
        check.click(checked, self._fields, self._status, show_progress="hidden", concurrency_limit=None, **PRIVATE)
        unloaded = telling(self._unloading, self._status, {})
        self.unloaded = unload.click(unloaded, None, self._status, show_progress="hidden", concurrency_limit=None, **PRIVATE)
        loaded = telling(self._loading, self._status, {})
        self.loaded = load.click(loaded, self._fields, self._status, show_progress="hidden", concurrency_limit=None, **PRIVATE)

    def _checking(self, visitor: str, *fields: Any) -> Iterator[Update]:
        spec = ModelSpec.of(*fields)
        yield {self._status: in_markdown(f"{spec.short_name}: looking for it")}
        yield {self._status: in_markdown(f"{spec.short_name}: {needed(spec)}")}

    def _unloading(self, visitor: str) -> Iterator[Update]:
        yield {self._status: "letting it go"}
        self._site.shelf.unload(self._place)
        yield {self._status: "No model is loaded here."}

    def _loading(self, visitor: str, *fields: Any) -> Iterator[Update]:
        for line in self._site.shelf.load(ModelSpec.of(*fields), self._place):
            yield {self._status: in_markdown(line)}


def _fields(place: str) -> list[Any]:
    """Arguments of `ModelSpec.of`."""
    name = gr.Dropdown(
        [*SUGGESTED], value=DEMO, label="Model", info="The bundled demo, a folder here, or an id of the Hugging Face Hub.",
        allow_custom_value=True, elem_id=f"model-{place}",
    )  # fmt: skip
    with gr.Row():
        backend = gr.Radio([*NAMES], value=NAMES[0], label="Backend", min_width=140)
        dtype = gr.Dropdown([*DTYPES], value=AS_STORED, label="Numbers", filterable=False, min_width=140)
        revision = gr.Textbox("", label="Revision", placeholder="main", min_width=140)
    return [name, backend, dtype, revision]
