"""What several commands show people: tables and lines on stdout, and on a terminal's stderr what is being done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PIPED_WIDTH = 120  # characters of a line where there is no terminal


def show(*parts: Any) -> None:
    """Print tables, and texts as they are."""
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
    for part in parts:
        console.print(part, markup=False, soft_wrap=isinstance(part, str))


@contextmanager
def status() -> Iterator[Callable[[str], None]]:
    """Yields what says on stderr, if that is a terminal, what is being done."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda doing: None
        return
    with console.status("") as shown:
        yield shown.update
