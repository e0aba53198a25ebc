"""Files come to the page as uploads alone. Gradio would also fetch them from any address that a visitor names."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import gradio as gr

Move = Callable[[str | Path | None], Coroutine[Any, Any, str | None]]


def take_only_uploads(page: gr.Blocks) -> None:
    """For all components of a page. Gradio itself refuses files of this machine that were not uploaded."""
    for block in page.blocks.values():
        block.async_move_resource_to_block_cache = _refusing(block.async_move_resource_to_block_cache)  # type: ignore[method-assign,assignment]


def _refusing(move: Move) -> Move:
    async def moved(source: str | Path | None) -> str | None:
        if "://" in str(source):
            raise gr.Error("files are uploaded, not fetched from addresses", print_exception=False)
        return await move(source)

    return moved
