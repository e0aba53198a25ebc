"""Between the page and what works behind it: errors in one line, and the buttons while something runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from ..common.errors import PaliGemmaError
from .plain_text import in_markdown, warn

Update = dict[Any, Any]  # component: its new value or form
PRIVATE: dict[str, Any] = {"api_visibility": "private"}  # the page has no API of its own; `serve` is it


def telling(work: Callable[..., Iterator[Update]], line: gr.Markdown, after: Update) -> Callable[..., Iterator[Update]]:
    """The same work, which gets the visitor's name before its arguments; an error becomes the text of `line` and a note.

    `after`: what holds however it ends.
    """

    def told(request: gr.Request, *arguments: Any) -> Iterator[Update]:
        try:
            yield from work(str(request.session_hash), *arguments)
        except Exception as error:  # noqa: BLE001 - whatever it is, the page is to go on
            message = in_words(error)
            warn(message)
            yield {line: f"**{in_markdown(message)}**"}
        if after:
            yield after

    return told


def in_words(error: Exception) -> str:
    """One line for visitors; what was not foreseen goes to the log."""
    if isinstance(error, PaliGemmaError):
        return " ".join(str(error).split())
    logging.getLogger(__name__).error("the page failed", exc_info=error)
    return "something went wrong here; the program's log says more"


def is_busy(run: gr.Button, stop: gr.Button) -> Update:
    """While it runs it can be stopped."""
    return {run: gr.update(interactive=False), stop: gr.update(interactive=True, variant="stop")}


def is_idle(run: gr.Button, stop: gr.Button) -> Update:
    """When it does not run it can be begun."""
    return {run: gr.update(interactive=True), stop: gr.update(interactive=False, variant="secondary")}
