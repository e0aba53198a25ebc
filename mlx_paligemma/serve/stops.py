"""The strings at which an answer ends (`stop`), in text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Lets out text that cannot be part of a stop string any more. A stop string itself is never let out."""

    def __init__(self, stops: Sequence[str]):
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """What is certain now, up to a stop string if there is one."""
        self._held += text
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.found, ready, self._held = True, self._held[: min(places)], ""
            return ready
        return self._release(len(self._held) - self._begun())

    def finish(self) -> str:
        """What was held back, at the end."""
        return self._release(len(self._held))

    def _begun(self) -> int:
        """Characters at the end with which a stop string begins."""
        longest = max(map(len, self._stops), default=1) - 1
        sizes = range(min(longest, len(self._held)), 0, -1)
        return next((size for size in sizes if any(stop.startswith(self._held[-size:]) for stop in self._stops)), 0)

    def _release(self, count: int) -> str:
        ready, self._held = self._held[:count], self._held[count:]
        return ready
