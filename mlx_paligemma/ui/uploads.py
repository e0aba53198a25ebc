"""Files come to the page as uploads alone. Gradio would also fetch them from any address that a visitor names."""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

T = TypeVar("T")
Move = Callable[[Any, str | Path | None], Coroutine[Any, Any, str | None]]


def of_uploads(kind: type[T], **methods: Any) -> type[T]:
    """A kind of component that takes uploads alone, with methods of its own.

    Gradio 6.31 makes a component anew, from its class, for each visitor for whom it was changed: what was set on the component
    itself is lost then. And for a class statement it would write a .pyi file beside the module; its metaclass's parent does not.
    """
    methods |= {"is_template": True, "__module__": __name__, "async_move_resource_to_block_cache": _refusing(kind)}
    made: type[T] = ABCMeta.__new__(type(kind), f"Uploaded{kind.__name__}", (kind,), methods)
    return made


def _refusing(kind: Any) -> Move:
    """Gradio itself refuses files of this machine that were not uploaded."""
    move = kind.async_move_resource_to_block_cache

    async def moved(self: Any, source: str | Path | None) -> str | None:
        if "://" in str(source):
            raise gr.Error("files are uploaded, not fetched from addresses", print_exception=False)
        found: str | None = await move(self, source)
        return found

    return moved
