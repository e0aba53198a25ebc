"""Questions about a picture, one after another: what was asked and answered, and what can be saved of it.

A question stands alone: the model sees the picture and the newest prompt, as it was trained to, and no earlier ones.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..common.decoding import Generation
from ..common.draw import draw_detections
from ..common.errors import OptionError, PromptError
from ..common.feature_cache import FeatureCache
from ..common.formats import Record, as_line, as_record, replacing
from ..common.results import GenerationResult
from .picture_writer import check_plain, is_same_file
from .sources import separate_jobs

JSON_ENDING = ".json"


@dataclass(frozen=True, eq=False)
class View:
    """What is being talked about."""

    name: str  # as the user gave it
    picture: Image.Image  # RGB

    @classmethod
    def of(cls, name: str) -> View:
        """The picture of a file, an address, or a pattern that fits one file.

        Raises:
            ImageError: it cannot be read.
            OptionError: it is several pictures.
        """
        jobs = separate_jobs([name])
        if len(jobs) > 1:
            raise OptionError(f"{name} stands for {len(jobs)} pictures; give one")
        return cls(jobs[0].name, jobs[0].open()[0])


@dataclass(frozen=True, eq=False)
class Answer:
    """An answer, and what it is about."""

    view: View
    result: GenerationResult
    was_encoded: bool  # False: the picture's features were there from an earlier question


@dataclass
class Conversation:
    """The picture, and all questions so far. `start` begins an answer, and uses `features`."""

    start: Callable[[Image.Image, str], Generation]
    features: FeatureCache
    view: View | None = None
    last: Answer | None = None
    records: list[Record] = field(default_factory=list)  # of all answers, as `generate --json` prints them
    _names: set[str] = field(default_factory=set)  # of all pictures that were asked about

    def ask(self, prompt: str, show: Callable[[str], None]) -> Answer:
        """Answer a prompt, handing its text to `show` as it grows. Ctrl-C ends it early: the answer is "cancelled" then.

        Raises:
            PromptError: the prompt is empty or too long, or there is no picture.
            NumericError: the model produced numbers that are not finite.
        """
        if self.view is None:
            raise PromptError("there is no picture yet; choose one with /image PATH")
        misses = self.features.misses
        generation = self.start(self.view.picture, prompt)
        try:
            for chunks in generation:
                if chunks[0] is not None:
                    show(chunks[0].text)
        except KeyboardInterrupt:
            pass
        self.last = Answer(self.view, generation.results()[0], self.features.misses > misses)
        self.records.append(as_record(self.view.name, prompt, self.last.result))
        self._names.add(self.view.name)
        return self.last

    def forget(self) -> None:
        """Drop the questions and answers; the picture stays, and stays encoded."""
        self.records.clear()
        self.last = None

    def save(self, target: Path) -> None:
        """Write all questions and answers to a .json file, or the last answer's boxes and masks, drawn, to a picture file.

        Raises:
            OptionError: there is nothing to write, the ending is of neither kind, or a picture of the conversation would be lost.
            OSError: the file cannot be written.
        """
        names = self._names | ({self.view.name} if self.view else set())
        check_plain(target)
        if any(is_same_file(target, Path(name)) for name in names):
            raise OptionError(f"{target} is the picture itself and is not overwritten; choose another name")
        if target.suffix.lower() == JSON_ENDING:
            self._save_records(target)
        else:
            target.write_bytes(self._drawn(target))

    def _save_records(self, target: Path) -> None:
        if not self.records:
            raise OptionError("nothing was asked yet, so there is nothing to save")
        with replacing(target) as out:
            out.write("[\n" + ",\n".join(map(as_line, self.records)) + "\n]\n")

    def _drawn(self, target: Path) -> bytes:
        """The content of a picture file: made whole before the file is touched."""
        Image.init()
        form = Image.EXTENSION.get(target.suffix.lower())
        if form not in Image.SAVE:
            raise OptionError(f"{target} has no ending that can be written; end it in .png or .jpg, or .json for the conversation")
        if self.last is None or not self.last.result.detections:
            raise OptionError("the last answer has no boxes to draw; ask with 'detect ...' or 'segment ...' first")
        content = io.BytesIO()
        try:
            draw_detections(self.last.view.picture, self.last.result.detections).save(content, form)
        except (OSError, ValueError, KeyError) as error:  # formats for black and white alone, or of other programs
            raise OptionError(f"{target}: {form} cannot hold this picture ({error}); end it in .png or .jpg") from None
        return content.getvalue()
