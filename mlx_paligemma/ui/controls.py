"""What every tab asks with: task, text, language, and how tokens are chosen."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from ..common.errors import PromptError
from ..common.sampling import SamplingOptions
from .plain_text import in_markdown
from .settings import Settings
from .tasks import LANGUAGES, Task, write_prompt

LABELS = {
    Task.caption: ("Text", ""),
    Task.question: ("Question", "what is on the table?"),
    Task.detect: ("What to find", "cat ; dog"),
    Task.segment: ("What to cut out", "cat ; dog"),
    Task.ocr: ("Text", ""),
    Task.free: ("Prompt", "caption en"),
}


@dataclass(frozen=True)
class PromptControls:
    """The task picker and what belongs to it."""

    task: gr.Radio
    text: gr.Textbox
    language: gr.Dropdown
    prompt: gr.Markdown  # as it will be sent to the model

    @classmethod
    def build(cls, settings: Settings, tab: str) -> PromptControls:
        """Make them in the block that is open; `tab` begins their ids on the page."""
        task = gr.Radio([*Task], value=Task.caption, label="Task", elem_id=f"{tab}-task")
        text = gr.Textbox(elem_id=f"{tab}-text", visible=False, lines=1, max_lines=4, max_length=settings.max_prompt, label="Text")
        language = gr.Dropdown([*LANGUAGES.items()], value="en", label="Language", allow_custom_value=True, filterable=True)
        controls = cls(task, text, language, gr.Markdown(_shown(Task.caption, "", "en"), elem_classes="prompt"))
        task.change(cls._for_task, task, [text, language], show_progress="hidden", api_visibility="private")
        gr.on(
            [task.change, text.change, language.change],
            _shown,
            controls.inputs,
            controls.prompt,
            show_progress="hidden",
            api_visibility="private",
        )
        return controls

    @property
    def inputs(self) -> list[Any]:
        """Arguments of `write_prompt`."""
        return [self.task, self.text, self.language]

    @staticmethod
    def _for_task(task: str) -> tuple[Any, Any]:
        label, placeholder = LABELS[Task(task)]
        text = gr.Textbox(label=label, placeholder=placeholder, visible=Task(task).needs_text)
        return text, gr.Dropdown(visible=Task(task).has_language)


@dataclass(frozen=True)
class OptionControls:
    """How tokens are chosen."""

    max_tokens: gr.Slider
    sampling: gr.Checkbox
    temperature: gr.Slider
    top_p: gr.Slider
    seed: gr.Number
    grammar: gr.Checkbox

    @classmethod
    def build(cls, settings: Settings) -> OptionControls:
        """Make them in the block that is open."""
        max_tokens = gr.Slider(1, settings.max_tokens, 256, step=1, label="Max tokens", info="An answer is cut off after them.")
        grammar = gr.Checkbox(True, label="Grammar", info="Holds boxes and masks to their form; answers in words stay as they are.")
        sampling = gr.Checkbox(False, label="Sampling", info="Off: the likeliest token each time.")
        temperature = gr.Slider(0.05, 2, 0.7, step=0.05, label="Temperature", visible=False)
        top_p = gr.Slider(0.05, 1, 0.95, step=0.05, label="Top-p", visible=False)
        seed = gr.Number(None, label="Seed", info="Empty: another answer each time.", visible=False)
        drawn = [temperature, top_p, seed]
        sampling.change(cls._show, sampling, drawn, show_progress="hidden", api_visibility="private")
        return cls(max_tokens, sampling, temperature, top_p, seed, grammar)

    @property
    def inputs(self) -> list[Any]:
        """Arguments of `options`."""
        return [self.max_tokens, self.sampling, self.temperature, self.top_p, self.seed, self.grammar]

    @staticmethod
    def _show(sampling: bool) -> list[Any]:
        return [gr.Slider(visible=sampling), gr.Slider(visible=sampling), gr.Number(visible=sampling)]


def options(
    max_tokens: float, sampling: bool, temperature: float, top_p: float, seed: float | None, grammar: bool
) -> SamplingOptions:
    """What the controls say. Raises OptionError."""
    plain = SamplingOptions(int(max_tokens), grammar=grammar)
    return replace(plain, temperature=temperature, top_p=top_p, seed=_whole(seed)) if sampling else plain


def _whole(seed: Any) -> Any:
    """1.0, as a browser may send it, is 1; what is no whole number is left to be refused."""
    return int(seed) if seed is not None and seed == int(seed) else seed


def _shown(task: str, text: str, language: str | None) -> str:
    try:
        return f"Prompt: {_code(write_prompt(task, text, language))}"
    except PromptError as error:
        return in_markdown(f"Prompt: {error}")


def _code(text: str) -> str:
    """As code in Markdown, between more backticks than stand together in the text."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}"
