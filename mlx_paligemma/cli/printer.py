"""What a run shows: answers on stdout, everything else on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from PIL import Image

from ..common.decoding import Generation
from ..common.draw import draw_detections
from ..common.errors import PaliGemmaError
from ..common.formats import Record, as_line, as_record, failed_record
from ..common.results import GenerationResult, Stats
from .picture_writer import MaskWriter, PictureWriter
from .results_place import ResultsPlace
from .sources import Job


class Style(StrEnum):
    """How answers look on stdout."""

    stream = "stream"  # the text of the only answer, as it grows
    lines = "lines"  # name and text
    json = "json"
    silent = "silent"


@dataclass
class Printer:
    """Hands every answer to all who want it."""

    style: Style
    verbose: bool
    prompt: str
    pictures: PictureWriter | None = None
    masks: MaskWriter | None = None
    results: ResultsPlace | None = None
    _noted: set[str] = field(default_factory=set)

    def follow(self, generation: Generation) -> bool:
        """Run a generation, showing its text as it comes; True if the user interrupted it."""
        try:
            for chunks in generation:
                if self.style == Style.stream and chunks[0] is not None:
                    print(chunks[0].text, end="", flush=True)
        except KeyboardInterrupt:
            return True
        finally:
            if self.style == Style.stream:
                print(flush=True)
        return False

    def result(self, job: Job, picture: Image.Image, result: GenerationResult) -> None:
        """Print, draw and keep an answer. One that was cut off is not kept: the next run gives it whole."""
        is_whole = result.finish_reason != "cancelled"
        if self.style == Style.lines:
            print(f"{job.name}: {result.text}", flush=True)
        self._remark(job, result)
        if self.pictures is not None:
            print(f"wrote {self.pictures.write(job.name, draw_detections(picture, result.detections))}", file=sys.stderr)
        if self.masks is not None and is_whole:
            self.masks.write(job.name, result.detections)
        if self.style == Style.json or self.results is not None:
            self._record(as_record(job.name, self.prompt, result), is_whole)

    def error(self, job: Job, error: PaliGemmaError) -> None:
        """Say that a picture failed; the others go on."""
        self._record(failed_record(job.name, self.prompt, str(error)), is_whole=True)
        print(f"error: {error}", file=sys.stderr)

    def _record(self, record: Record, is_whole: bool) -> None:
        if self.style == Style.json:
            print(as_line(record), flush=True)
        if self.results is not None and is_whole:
            self.results.add(record)

    def _remark(self, job: Job, result: GenerationResult) -> None:
        for note in result.notes:
            if note not in self._noted:
                print(f"note: {note}", file=sys.stderr)
            self._noted.add(note)
        if self.verbose:
            name = "" if self.style == Style.stream else f"{job.name}: "  # which of several answers
            print(f"{name}{_cost(result.stats)}", file=sys.stderr)


@contextmanager
def progress(total: int, wanted: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, if that is a terminal and there is more than one answer; yields what moves it on by some answers."""
    if not wanted or total < 2 or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    columns = (BarColumn(bar_width=None), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.advance(task, done)


def _cost(stats: Stats) -> str:
    first = "-" if stats.time_to_first_token_s is None else f"{stats.time_to_first_token_s:.3f} s"
    speed = "-" if stats.generation_tps is None else f"{stats.generation_tps:.1f} tokens/s"
    changed = f", {stats.grammar_changes} changed by the grammar" if stats.grammar_changes else ""
    return (
        f"Prompt: {stats.prompt_tokens} tokens, first answer token after {first}. "
        f"Generation: {stats.generation_tokens} tokens{changed}, {speed}. Peak memory: {stats.peak_memory_bytes / 1e9:.3f} GB."
    )
