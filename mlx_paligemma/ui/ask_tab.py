"""The tab where a picture is asked about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from ..backends import NAMES
from ..common.formats import Record, as_record
from ..common.results import GenerationResult
from . import view
from .answering import answer
from .controls import OptionControls, PromptControls, options
from .downloads import answer_files
from .events import PRIVATE, Update, is_busy, is_idle, telling
from .examples import EXAMPLES
from .picture_input import open_picture, picture_input
from .plain_text import in_markdown
from .site import Site
from .tables import html_table
from .tasks import write_prompt

ASKED = ("Prompt", "Answer")
MOST_ASKED = 50
SHOWN = 0.005  # scores have two digits on the page: one that is shown as 0.99 is not below 0.99
Pair = tuple[str, str]  # prompt and answer


@dataclass(frozen=True)
class Answered:
    """The newest answer, and the file that it is about."""

    path: str
    record: Record


class AskTab:
    """Made in the block that is open when it is constructed."""

    def __init__(self, site: Site):
        self._site = site
        self._answered = gr.State(None, time_to_live=site.settings.files_kept)  # of the newest answer
        with gr.Row(equal_height=False):
            with gr.Column(min_width=320):
                self._make_questions()
            with gr.Column(min_width=320):
                self._make_answers()
        self._examples = self._examples_below()
        self.changes: list[Any] = []  # events after which another model may be there
        self._connect()

    def _make_questions(self) -> None:
        self._picture = picture_input(self._site)
        self._prompt = PromptControls.build(self._site.settings, "ask")
        with gr.Row(elem_classes="actions"):
            self._ask = gr.Button("Ask", variant="primary", min_width=100, elem_id="ask")
            self._stop = gr.Button("Stop", interactive=False, min_width=100, elem_id="stop")
        with gr.Accordion("Options", open=False):
            self.backends = [_backend()] if self._site.settings.can_swap else []
            self._options = OptionControls.build(self._site.settings)

    def _examples_below(self) -> Any:
        return gr.Examples(
            [[str(path), task.value, text] for path, task, text in EXAMPLES],
            [self._picture, self._prompt.task, self._prompt.text],
            label="Examples, for the demo model",
            examples_per_page=len(EXAMPLES),
            api_visibility="private",
        )

    def _make_answers(self) -> None:
        self._answer = gr.Textbox(
            label="Answer",
            lines=2,
            max_lines=5,
            buttons=["copy"],
            elem_id="answer",
            interactive=False,
        )
        self._line = gr.Markdown("", elem_classes="line", elem_id="line")
        self._found = gr.AnnotatedImage(label="Found", show_label=False, visible=False, elem_id="found", elem_classes="found")
        self._min_score = gr.Slider(0, 1, 0, step=0.01, label="Minimum score", info="Hides objects below it.", visible=False)
        self._table = gr.HTML(visible=False, elem_id="objects", elem_classes="listed")
        self._files = gr.File(
            label="Downloads", file_count="multiple", interactive=False, visible=False, elem_id="files", elem_classes="taken"
        )
        with gr.Accordion("Earlier questions", open=False):
            self._asked = gr.State([], time_to_live=self._site.settings.files_kept)
            self._asked_table = gr.HTML("None yet.", elem_id="asked", elem_classes="listed")

    def _connect(self) -> None:
        shown = [self._answer, self._line, self._found, self._min_score, self._table, self._files]
        for begin in (self._ask.click, self._prompt.text.submit, self._examples.load_input_event.then):
            self._connect_asking(begin, [*shown, self._answered, self._ask, self._stop])
        for backend in self.backends:
            swapping = telling(self._swapping, self._line, {})
            self.changes.append(backend.input(swapping, backend, self._line, show_progress="hidden", **PRIVATE).then)
        self._stop.click(self._stopping, None, None, queue=False, **PRIVATE)
        judged = self._min_score.input(  # not release, which the keyboard does not cause
            self._judge,
            [self._answered, self._min_score],
            [self._found, self._table],
            show_progress="hidden",
            trigger_mode="always_last",
            **PRIVATE,
        )
        judged.then(self._write_files, [self._answered, self._min_score], self._files, **PRIVATE)

    def _connect_asking(self, begin: Any, outputs: list[Any]) -> None:
        """What is done after an event that asks."""
        asked = begin(
            telling(self._asking, self._line, is_idle(self._ask, self._stop)),
            [self._picture, *self._prompt.inputs, *self._options.inputs],
            outputs,
            show_progress="hidden",
            scroll_to_output=True,
            concurrency_limit=None,
            **PRIVATE,
        )
        asked.then(self._write_files, [self._answered, self._min_score], self._files, **PRIVATE)
        asked.then(
            self._remember, [self._answered, self._asked], [self._asked, self._asked_table], show_progress="hidden", **PRIVATE
        )
        self.changes.append(asked.then)

    def _asking(self, visitor: str, path: str | None, task: str, text: str, language: str, *choices: Any) -> Iterator[Update]:
        """The text as it grows, then all that can be shown of the answer."""
        runner, prompt = self._site.shelf.get(), write_prompt(task, text, language)
        picture = open_picture(path, self._site.settings)
        yield is_busy(self._ask, self._stop) | self._nothing()
        with self._site.stops.running(visitor) as stop:
            for told in answer(runner, picture, prompt, options(*choices), stop):
                if isinstance(told, GenerationResult):
                    yield self._whole(picture, Answered(str(path), as_record(Path(str(path)).name, prompt, told)))
                else:
                    yield {self._answer: told}

    def _swapping(self, visitor: str, backend: str) -> Iterator[Update]:
        """The same model on the other backend."""
        spec = replace(self._site.shelf.get().spec, backend=backend)
        for line in self._site.shelf.load(spec):
            yield {self._line: in_markdown(line)}

    def _nothing(self) -> Update:
        """Before an answer."""
        hidden: list[Any] = [gr.AnnotatedImage(visible=False), gr.HTML(visible=False), gr.File(visible=False)]
        return {
            self._answer: "", self._line: "", self._answered: None, self._found: hidden[0], self._table: hidden[1],
            self._files: hidden[2], self._min_score: gr.Slider(0, visible=False),
        }  # fmt: skip

    def _whole(self, picture: Any, answered: Answered) -> Update:
        record = answered.record
        found, table = self._objects(picture, record, 0.0)
        text = {self._answer: record["text"], self._line: in_markdown(view.summary(record)), self._answered: answered}
        return text | {self._found: found, self._table: table, self._min_score: gr.Slider(visible=bool(record["detections"]))}

    def _objects(self, picture: Any, record: Record, min_score: float) -> tuple[Any, Any]:
        found = view.found_in(record, min_score - SHOWN)
        layers, visible = view.layers(picture, found), bool(record["detections"])
        image = gr.AnnotatedImage((layers.picture, layers.layers), color_map=layers.colors, visible=visible)
        table = html_table("Objects", view.TABLE, view.rows(found)) if found else "No object has such a score."
        return image, gr.HTML(table, visible=visible)

    def _judge(self, answered: Answered | None, min_score: float) -> tuple[Any, Any]:
        """The same answer with fewer or more of its objects."""
        if answered is None:
            return gr.skip(), gr.skip()
        return self._objects(open_picture(answered.path, self._site.settings), answered.record, min_score)

    def _write_files(self, answered: Answered | None, min_score: float) -> Any:
        if answered is None:
            return gr.File(visible=False)
        files = answer_files(
            self._site.new_folder(),
            open_picture(answered.path, self._site.settings),
            view.with_score(answered.record, min_score - SHOWN),
        )
        return gr.File([str(file) for file in files], visible=True)

    def _remember(self, answered: Answered | None, asked: list[Pair]) -> tuple[Any, Any]:
        """Newest first."""
        if answered is None:
            return gr.skip(), gr.skip()
        pairs = [(answered.record["prompt"], answered.record["text"]), *asked][:MOST_ASKED]
        return pairs, html_table("Newest first", ASKED, pairs)

    def _stopping(self, request: gr.Request) -> None:
        self._site.stops.request(str(request.session_hash))


def _backend() -> gr.Radio:
    return gr.Radio([*NAMES], label="Backend", info="Loads the model anew.")
