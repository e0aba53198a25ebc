"""Texts that others wrote, such as prompts, answers and names of files, for places of the page that would read them as markup."""

from __future__ import annotations

import re
from html import escape

import gradio as gr

_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")


def in_markdown(text: str) -> str:
    r"""The same text when it is shown as Markdown: each ASCII punctuation mark after a backslash (CommonMark 0.31, section 2.4)."""
    return _PUNCTUATION.sub(r"\\\g<0>", text)


def warn(text: str) -> None:
    """A note at the page's corner, which Gradio would read as HTML."""
    gr.Warning(escape(text))
