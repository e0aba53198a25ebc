"""SIGINT, SIGTERM and SIGHUP as exceptions, so that a program that is told to end can put things in order first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class EndingSignals:
    """While it is entered, an ending signal waits; inside `heard()` it is an exception there.

    What each raises is what its handler raises (KeyboardInterrupt for Ctrl-C), or SystemExit with the shell's code for it.
    Ignored ones stay ignored (`nohup`). Outside of the main thread, where Python allows no handlers, this does nothing.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}  # signal to the handler that it had
        self._waiting: list[int] = []
        self._heard = False

    def __enter__(self) -> EndingSignals:
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in ENDING}
            self._before = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
            for number in self._before:
                signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._waiting:
            self._end(self._waiting[0], None)

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Inside, signals are exceptions, those that have waited first."""
        try:
            self._heard = True
            if self._waiting:
                self._receive(self._waiting.pop(0), None)
            yield
        finally:
            self._heard = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self._heard:
            self._waiting.append(number)
            return
        self._heard = False  # a second one must not disturb what the first one starts
        self._end(number, frame)
        self._heard = True  # a handler that raises nothing lets the program go on

    def _end(self, number: int, frame: FrameType | None) -> None:
        handler: Callable[[int, FrameType | None], Any] | int = self._before[number]
        if not callable(handler):
            raise SystemExit(128 + number)
        handler(number, frame)
