"""The tab for many pictures at once: files in, a zip out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from ..common.errors import OptionError
from ..common.formats import Record
from . import view
from .answering import answer_files
from .controls import OptionControls, PromptControls, options
from .downloads import batch_zip
from .events import PRIVATE, Update, is_busy, is_idle, telling
from .file_names import unique_names
from .picture_file import read_picture
from .site import Site
from .tables import html_table
from .tasks import write_prompt
from .uploads import of_uploads

TABLE = ("Picture", "Answer", "Objects")


class BatchTab:
    """Made in the block that is open when it is constructed."""

    def __init__(self, site: Site):
        self._site = site
        with gr.Row(equal_height=False):
            with gr.Column(min_width=320):
                files = of_uploads(gr.File)(label="Pictures", file_count="multiple", height=220, elem_id="batch-files")
                prompt = PromptControls.build(site.settings, "batch")
                with gr.Row(elem_classes="actions"):
                    self._run = gr.Button("Ask about all", variant="primary", min_width=100, elem_id="batch-run")
                    self._stop = gr.Button("Stop", interactive=False, min_width=100)
                with gr.Accordion("Options", open=False):
                    chosen = OptionControls.build(site.settings)
            with gr.Column(min_width=320):
                self._line = gr.Markdown("", elem_classes="line", elem_id="batch-line")
                self._zip = gr.File(label="Download", interactive=False, visible=False, elem_id="batch-zip")
                self._table = gr.HTML("", elem_id="batch-table")
        self._run.click(
            telling(self._running, self._line, is_idle(self._run, self._stop)),
            [files, *prompt.inputs, *chosen.inputs],
            [self._line, self._table, self._zip, self._run, self._stop],
            show_progress="hidden",
            concurrency_limit=None,
            **PRIVATE,
        )
        self._stop.click(self._stopping, None, None, queue=False, **PRIVATE)

    def _running(
        self, visitor: str, paths: list[str] | None, task: str, text: str, language: str, *chosen: Any
    ) -> Iterator[Update]:
        """The table as it grows, then the zip of all that was answered."""
        files = self._checked(paths)
        prompt, runner, records = write_prompt(task, text, language), self._site.shelf.get(), []
        yield is_busy(self._run, self._stop) | {self._table: "", self._zip: gr.File(visible=False), self._line: ""}
        with self._site.stops.running(f"{visitor}-batch") as stop:
            for record in answer_files(runner, files, prompt, options(*chosen), self._site.settings.max_image_pixels, stop):
                records.append(record)
                yield {self._table: html_table("Answers", TABLE, _rows(records)), self._line: f"{len(records)} of {len(files)}"}
        if records:
            yield {self._line: f"{_summary(records, len(files))}; packing"}
            packed = batch_zip(self._site.new_folder(), records, partial(self._read, files))
            yield {self._line: _summary(records, len(files)), self._zip: gr.File(str(packed), visible=True)}

    def _checked(self, paths: list[str] | None) -> dict[str, Path]:
        """Files by names of which no two are the same. Raises OptionError for none, or too many."""
        if not paths:
            raise OptionError("there are no pictures yet; drop some")
        if len(paths) > self._site.settings.max_files:
            raise OptionError(f"these are {len(paths)} pictures; give at most {self._site.settings.max_files} at a time")
        files = [Path(path) for path in paths]
        return dict(zip(unique_names([file.name for file in files]), files, strict=True))

    def _read(self, files: dict[str, Path], record: Record) -> Any:
        return read_picture(files[record["image"]], self._site.settings.max_image_pixels)

    def _stopping(self, request: gr.Request) -> None:
        self._site.stops.request(f"{request.session_hash}-batch")


def _rows(records: list[Record]) -> list[list[object]]:
    return [[record["image"], _answer(record), len(record.get("detections", []))] for record in records]


def _answer(record: Record) -> str:
    """In words: what was found rather than its tokens."""
    if "error" in record:
        return f"error: {record['error']}"
    found = view.names(view.found_in(record))
    return ", ".join(found) if found else record["text"]


def _summary(records: list[Record], asked: int) -> str:
    failed = sum("error" in record for record in records)
    words = [f"{len(records) - failed} of {asked} answered"]
    words += [f"{failed} failed"] if failed else []
    return ", ".join(words + (["stopped"] if len(records) < asked else []))
