"""The tab where two models, or two forms of one, answer side by side."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ..common.formats import as_record
from ..common.results import GenerationResult
from ..common.sampling import SamplingOptions
from . import view
from .answering import answer
from .controls import OptionControls, PromptControls, options
from .events import PRIVATE, Update, is_busy, is_idle, telling
from .model_tab import ModelTab
from .picture_input import open_picture, picture_input
from .plain_text import in_markdown
from .runners import Runner
from .shelf import MAIN, SECOND
from .site import Site
from .stop import Stop
from .tasks import write_prompt


class Side:
    """One of the two: the model's name, its answer, its objects."""

    def __init__(self, place: str, title: str):
        self.place = place
        with gr.Column(min_width=300):
            self.name = gr.Markdown(f"**{title}**")
            self.text = gr.Textbox(label="Answer", lines=2, max_lines=8, interactive=False, elem_id=f"answer-{place}")
            self.cost = gr.Markdown("", elem_classes="line")
            self.found = gr.AnnotatedImage(label="Found", show_label=False, visible=False, elem_classes="found")

    @property
    def outputs(self) -> list[Any]:
        """Its components."""
        return [self.name, self.text, self.cost, self.found]

    def empty(self, runner: Runner) -> Update:
        """Before the answer."""
        title = f"**{in_markdown(described(runner))}**"
        return {self.name: title, self.text: "", self.cost: "", self.found: gr.AnnotatedImage(visible=False)}

    def whole(self, picture: Image.Image, name: str, prompt: str, result: GenerationResult) -> Update:
        """All that can be shown of the answer."""
        record = as_record(name, prompt, result)
        layers = view.layers(picture, result.detections)
        found = gr.AnnotatedImage((layers.picture, layers.layers), color_map=layers.colors, visible=bool(result.detections))
        return {self.text: result.text, self.cost: in_markdown(view.summary(record)), self.found: found}


class CompareTab:
    """Made in the block that is open when it is constructed."""

    def __init__(self, site: Site):
        self._site = site
        gr.Markdown(
            "The loaded model on the left, a second one on the right: another model, or the same with other numbers or backend."
        )
        with gr.Accordion("Second model", open=True):
            ModelTab(site, SECOND)
        with gr.Row(equal_height=False):
            with gr.Column(min_width=320):
                picture = picture_input(site)
            with gr.Column(min_width=320):
                prompt = PromptControls.build(site.settings, "compare")
                with gr.Row(elem_classes="actions"):
                    self._run = gr.Button("Compare", variant="primary", min_width=100, elem_id="compare")
                    self._stop = gr.Button("Stop", interactive=False, min_width=100)
                with gr.Accordion("Options", open=False):
                    chosen = OptionControls.build(site.settings)
        self._line = gr.Markdown("", elem_classes="line", elem_id="compare-line")
        with gr.Row(equal_height=False):
            self._sides = [Side(MAIN, "Loaded model"), Side(SECOND, "Second model")]
        self._run.click(
            telling(self._comparing, self._line, is_idle(self._run, self._stop)),
            [picture, *prompt.inputs, *chosen.inputs],
            [self._line, self._run, self._stop, *(part for side in self._sides for part in side.outputs)],
            show_progress="hidden",
            concurrency_limit=None,
            **PRIVATE,
        )
        self._stop.click(self._stopping, None, None, queue=False, **PRIVATE)

    def _comparing(self, visitor: str, path: str | None, task: str, text: str, language: str, *chosen: Any) -> Iterator[Update]:
        """One after the other, so that what they cost can be compared."""
        runners = [self._site.shelf.get(side.place) for side in self._sides]
        prompt, picture, texts = write_prompt(task, text, language), open_picture(path, self._site.settings), []
        asked = _Asked(Path(str(path)).name, picture, prompt, options(*chosen))
        yield is_busy(self._run, self._stop) | {self._line: ""}
        yield self._sides[0].empty(runners[0]) | self._sides[1].empty(runners[1])
        with self._site.stops.running(f"{visitor}-compare") as stop:
            for side, runner in zip(self._sides, runners, strict=True):
                if not stop.is_requested:
                    texts.append((yield from asked.of(runner, side, stop)))
        if len(texts) == len(self._sides) and not stop.is_requested:
            yield {self._line: "The two answers are the same." if texts[0] == texts[1] else "The two answers differ."}

    def _stopping(self, request: gr.Request) -> None:
        self._site.stops.request(f"{request.session_hash}-compare")


class _Asked:
    """What both are asked."""

    def __init__(self, name: str, picture: Image.Image, prompt: str, chosen: SamplingOptions):
        self._name, self._picture, self._prompt, self._options = name, picture, prompt, chosen

    def of(self, runner: Runner, side: Side, stop: Stop) -> Generator[Update, None, str]:
        """A side's answer as it grows; gives its text at the end."""
        text = ""
        for told in answer(runner, self._picture, self._prompt, self._options, stop):
            if isinstance(told, GenerationResult):
                text = told.text
                yield side.whole(self._picture, self._name, self._prompt, told)
            else:
                yield {side.text: told}
        return text


def described(runner: Runner) -> str:
    """A loaded model in words."""
    return f"{runner.spec.short_name} · {runner.spec.backend} · {runner.dtype}"
