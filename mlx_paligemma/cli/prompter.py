"""What the lines typed into `chat` do: prompts and /commands, and what they show."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..common.errors import NumericError, OptionError, PaliGemmaError
from ..common.results import Detection
from .conversation import Answer, Conversation, View

HELP = """\
A line is a prompt: caption en, answer en what is this?, ocr, detect cat ; dog, segment cat.
Each stands alone: the model does not see the earlier ones. Ctrl-C stops an answer, Ctrl-D leaves.
/image PATH   talk about another picture (a file or an http(s) address); without PATH: say which one it is
/save FILE    draw the last answer's boxes and masks; FILE.json: write all questions and answers
/history      show what was asked and answered
/clear        forget what was asked and answered
/stats        say what the last answer cost
/help         show this
/quit         leave"""


@dataclass
class Prompter:
    """Does what a line says. Answers go to stdout, everything else to stderr."""

    conversation: Conversation
    verbose: bool = False
    is_terminal: bool = False
    is_over: bool = False
    _noted: set[str] = field(default_factory=set)

    def greet(self) -> None:
        """The first words on a terminal."""
        self._image("")
        say("/help lists the commands; Ctrl-D leaves.")

    def obey(self, line: str) -> None:
        """Answer a prompt, or carry out a command. What the user can cause is one line on stderr."""
        try:
            if line.startswith("/"):
                self._command(line)
            else:
                self._ask(line)
        except BrokenPipeError:
            raise
        except PaliGemmaError as error:
            say(f"error: {' '.join(str(error).split())}")
        except OSError as error:
            say(f"error: {error.filename or 'the system'}: {error.strerror or error}")

    def _command(self, line: str) -> None:
        word, rest = [*line.split(maxsplit=1), ""][:2]
        commands: dict[str, Callable[[], None]] = {
            "/image": lambda: self._image(rest),
            "/save": lambda: self._save(rest),
            "/history": self._history,
            "/clear": self.conversation.forget,
            "/stats": self._stats,
            "/help": lambda: say(HELP),
            "/quit": self._quit,
        }
        if word not in commands:
            raise OptionError(f"there is no command {word}; /help lists them")
        commands[word]()

    def _ask(self, prompt: str) -> None:
        try:
            answer = self.conversation.ask(prompt, partial(print, end="", flush=True))
        except (NumericError, KeyboardInterrupt):
            print(flush=True)  # ends the text that was there
            raise
        print(flush=True)
        self._remark(answer)

    def _remark(self, answer: Answer) -> None:
        if answer.result.finish_reason == "cancelled":
            say("stopped")
        for note in answer.result.notes:
            if note not in self._noted:
                say(f"note: {note}")
            self._noted.add(note)
        if self.is_terminal or self.verbose:
            for detection in answer.result.detections:
                say(f"  {_place(detection)}")
        if self.verbose:
            self._stats()

    def _image(self, rest: str) -> None:
        if rest:
            self.conversation.view = View.of(_path(rest))
        view = self.conversation.view
        if view is None:
            say("No picture yet; choose one with /image PATH.")
        elif self.is_terminal or not rest:
            say(f"Picture: {view.name}, {view.picture.width} x {view.picture.height} pixels.")

    def _save(self, rest: str) -> None:
        if not rest:
            raise OptionError("/save needs a file, such as /save answer.png")
        target = Path(_path(rest))
        self.conversation.save(target)
        say(f"wrote {target}")

    def _history(self) -> None:
        for number, record in enumerate(self.conversation.records, 1):
            stopped = " (stopped)" if record["finish_reason"] == "cancelled" else ""
            say(f"{number}. {record['image']}: {record['prompt']}\n   {record['text']}{stopped}")
        if not self.conversation.records:
            say("Nothing was asked yet.")

    def _stats(self) -> None:
        if self.conversation.last is None:
            raise OptionError("nothing was asked yet, so there are no figures")
        say(_cost(self.conversation.last))

    def _quit(self) -> None:
        self.is_over = True


def say(text: str = "", end: str = "\n") -> None:
    """Tell the user something that is no answer."""
    print(text, end=end, file=sys.stderr, flush=True)


def _path(text: str) -> str:
    """A path as it is typed, or as a terminal writes one that is dropped on it: with quotes or backslashes."""
    if "\0" in text:
        raise OptionError("a path cannot have a null character in it")
    plain = os.path.expanduser(text)  # noqa: PTH111 - it may be an address, whose // Path would shorten
    if not Path(plain).exists():
        with suppress(ValueError):
            words = shlex.split(text)
            return os.path.expanduser(words[0]) if len(words) == 1 else plain  # noqa: PTH111
    return plain


def _place(detection: Detection) -> str:
    x0, y0, x1, y1 = (round(value) for value in detection.box)
    score = "" if detection.score is None else f", score {detection.score:.2f}"
    mask = "" if detection.mask is None else ", with mask"
    return f"{' '.join(detection.label.split())}: from ({x0}, {y0}) to ({x1}, {y1}){score}{mask}"


def _cost(answer: Answer) -> str:
    stats = answer.result.stats
    first = "-" if stats.time_to_first_token_s is None else f"{stats.time_to_first_token_s:.3f} s"
    speed = "-" if stats.generation_tps is None else f"{stats.generation_tps:.1f} tokens/s"
    encoded = "yes" if answer.was_encoded else "no (cached)"
    return f"Picture encoded: {encoded}. First token after {first}. Tokens: {stats.generation_tokens}, {speed}."
