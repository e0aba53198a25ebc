"""Where --format puts answers: into a journal as they come, and at the end into the file or folder that was asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

from ..common.errors import OptionError
from ..common.formats import Record, write_coco, write_csv, write_yolo
from .journal import Journal
from .picture_writer import check_plain
from .sources import Job


class FormatName(StrEnum):
    """Choices of --format."""

    json = "json"
    coco = "coco"
    yolo = "yolo"
    csv = "csv"


class ResultsPlace:
    """The answers to one prompt, of this run and of those that it goes on with.

    The journal is the target itself for json, and stands beside it for the others, with .jsonl after its name.
    """

    def __init__(self, form: FormatName, target: Path, prompt: str, resume: bool):
        """Writes nothing yet.

        Raises:
            OptionError: the target cannot be written, or holds results that would be lost.
        """
        self._form, self._prompt = form, prompt
        self._target = target = target.resolve() if target.is_symlink() else target  # a link stays a link
        self.journal = Journal(target if form == FormatName.json else target.resolve().with_name(f"{target.resolve().name}.jsonl"))
        self._check_kind()
        self._check_loss(resume)

    def remaining(self, jobs: Sequence[Job]) -> list[Job]:
        """Each job once, without those that the journal has answers to."""
        answered = {record["image"] for record in self.journal if record["prompt"] == self._prompt and "error" not in record}
        return [job for job in dict.fromkeys(jobs) if job.name not in answered]

    @contextmanager
    def collecting(self, jobs: Sequence[Job]) -> Iterator[None]:
        """While answers to `jobs` come; their old failures are forgotten. However it ends, the target has what there is."""
        asked = {job.name for job in jobs}
        self.journal.open(lambda record: "error" not in record or record["prompt"] != self._prompt or record["image"] not in asked)
        try:
            yield
        finally:
            self.finish()

    def add(self, record: Record) -> None:
        """Keep an answer, whatever happens after."""
        self.journal.append(record)

    def finish(self) -> None:
        """Close the journal, write the target from it, and say so."""
        self.journal.close()
        match self._form:
            case FormatName.coco:
                write_coco(self.journal, self._target)
            case FormatName.yolo:
                write_yolo(self.journal, self._target)
            case FormatName.csv:
                write_csv(self.journal, self._target)
        failed = answered = 0
        for record in self.journal:
            failed, answered = failed + ("error" in record), answered + ("error" not in record)
        total = f"{answered} answer{'' if answered == 1 else 's'}"
        print(f"wrote {self._target}: {total}" + (f", {failed} failed" if failed else ""), file=sys.stderr)

    def _check_kind(self) -> None:
        is_yolo = self._form == FormatName.yolo
        if self._target.exists() and self._target.is_dir() != is_yolo:
            wanted, found = ("folder", "file") if is_yolo else ("file", "folder")
            raise OptionError(f"-o {self._target} is a {found}, but --format {self._form} writes a {wanted}; choose another place")
        if not is_yolo:
            check_plain(self._target)

    def _check_loss(self, resume: bool) -> None:
        if resume and (self.journal.exists() or not self._is_taken()):
            return
        if resume:
            raise OptionError(f"-o {self._target} cannot be gone on with, as {self.journal.path} is missing; choose another place")
        if self.journal.exists() or self._is_taken():
            raise OptionError(f"-o {self._target} holds results already; add --resume to go on with them, or choose another place")

    def _is_taken(self) -> bool:
        if self._form == FormatName.yolo:
            return (self._target / "labels").exists() or (self._target / "data.yaml").exists()
        return self._target.is_file() and self._target.stat().st_size > 0
