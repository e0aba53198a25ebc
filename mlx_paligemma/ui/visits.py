"""Who uses a model at the moment: it is let go when nobody does any more."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..common.errors import BusyError
from .stop import Stop


class Visits:
    """Those that are open, each with its wish to end."""

    def __init__(self) -> None:
        self._open: list[Stop] = []
        self._has_ended = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def visit(self, stop: Stop) -> Iterator[None]:
        """While it is entered, `end` waits. Raises BusyError after the end."""
        with self._changed:
            if self._has_ended:
                raise BusyError("this model has been let go; ask again")
            self._open.append(stop)
        try:
            yield
        finally:
            with self._changed:
                self._open.remove(stop)
                self._changed.notify_all()

    def end(self, patience: float | None = None) -> None:
        """Wait until none is open, and allow no more. Those still open after so many seconds are stopped, and not waited for."""
        with self._changed:
            self._changed.wait_for(lambda: not self._open, patience)
            self._has_ended = True
            left = [*self._open]
        for stop in left:
            stop.request()
