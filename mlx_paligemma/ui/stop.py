"""The Stop button: a wish to end, told to whatever works for a visitor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stop:
    """A wish to end. It can be asked for from any thread, before or after the work has begun."""

    def __init__(self) -> None:
        self._actions: list[Callable[[], object]] = []
        self._lock, self._event = threading.Lock(), threading.Event()

    @property
    def is_requested(self) -> bool:
        """Whether the work is to end."""
        return self._event.is_set()

    @contextmanager
    def calling(self, action: Callable[[], object]) -> Iterator[None]:
        """While this is entered, do it when it is asked for; at once where it has been."""
        with self._lock:
            is_late = self.is_requested
            if not is_late:
                self._actions.append(action)
        if is_late:
            action()
        try:
            yield
        finally:
            with self._lock:
                if action in self._actions:
                    self._actions.remove(action)

    def request(self) -> None:
        """Ask for it."""
        with self._lock:
            self._event.set()
            actions, self._actions = self._actions, []
        for action in actions:
            action()


class Stops:
    """What runs for each visitor. Something new ends what ran for the same visitor before."""

    def __init__(self) -> None:
        self._running: dict[str, Stop] = {}
        self._lock = threading.Lock()

    @contextmanager
    def running(self, visitor: str) -> Iterator[Stop]:
        """While it is entered, `request` of this visitor reaches the work inside."""
        stop = Stop()
        with self._lock:
            before, self._running[visitor] = self._running.get(visitor), stop
        if before is not None:
            before.request()
        try:
            yield stop
        finally:
            with self._lock:
                if self._running.get(visitor) is stop:
                    del self._running[visitor]

    def request(self, visitor: str) -> bool:
        """End what runs for a visitor; whether there was anything."""
        with self._lock:
            stop = self._running.get(visitor)
        if stop is not None:
            stop.request()
        return stop is not None
