"""`mlx-paligemma chat`: a prompt loop about one picture, which is encoded once."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated

import typer
from PIL import Image

from ..backends import open_backend
from ..common.decoding import Generation
from ..common.feature_cache import FeatureCache
from ..common.sampling import SamplingOptions
from . import flags
from .app import reporting
from .conversation import Conversation, View
from .flags import BackendName, DtypeName
from .prompter import Prompter, say
from .torch_settings import prepare_torch

PROMPT = "> "


def chat(  # noqa: PLR0913, PLR0917 - a command has many flags
    image: Annotated[str | None, typer.Argument(help="A picture: a file or an http(s) address.")] = None,
    model: flags.Model = None,
    revision: flags.Revision = None,
    backend: flags.Backend = BackendName.mlx,
    dtype: flags.Dtype = None,
    mps_fallback: flags.MpsFallback = False,
    mps_memory_fraction: flags.MpsMemoryFraction = None,
    max_tokens: flags.MaxTokens = 100,
    temperature: flags.Temperature = 0.0,
    top_p: flags.TopP = 1.0,
    top_k: flags.TopK = 0,
    min_p: flags.MinP = 0.0,
    seed: flags.Seed = None,
    grammar: flags.Grammar = True,
    min_score: flags.MinScore = 0.0,
    verbose: flags.Verbose = False,
) -> None:
    """Ask about one picture, question after question. It is encoded once. /help lists the commands."""
    with reporting():
        prepare_torch(mps_fallback, mps_memory_fraction)
        options = SamplingOptions(max_tokens, temperature, top_p, top_k, min_p, seed, grammar=grammar, min_score=min_score)
        view = None if image is None else View.of(image)  # before the model: a wrong path is said at once
        features = FeatureCache()
        start = _starter(model, revision, backend, dtype, options, features)
        is_terminal = sys.stdin is not None and sys.stdin.isatty()
        talk(Prompter(Conversation(start, features, view), verbose, is_terminal), line_reader(is_terminal))


def _starter(
    model: str | None,
    revision: str | None,
    backend: BackendName,
    dtype: DtypeName | None,
    options: SamplingOptions,
    features: FeatureCache,
) -> Callable[[Image.Image, str], Generation]:
    """Load the model. Gives what begins an answer."""
    opened = open_backend(backend.value)
    network, processor = opened.load(model, dtype=dtype.value if dtype else None, revision=revision)

    def start(picture: Image.Image, prompt: str) -> Generation:
        return opened.start(network, processor, [picture], [prompt], features=features, **asdict(options))

    return start


def line_reader(is_terminal: bool) -> Callable[[], str | None]:
    """What gives the user's next line, None at the end. On a terminal with a prompt, and where it can be, with line editing."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # a line that is no UTF-8 is a bad prompt, not the end
    if not is_terminal:
        return _piped_line
    if not sys.stdout.isatty():  # `input` would write its prompt there
        return _typed_line
    with suppress(ImportError):  # not part of every Python
        import readline  # noqa: F401 - `input` edits lines when it is there
    return _edited_line


def _piped_line() -> str | None:
    return sys.stdin.readline() or None if sys.stdin is not None else None


def _typed_line() -> str | None:
    say(PROMPT, end="")
    return _piped_line()


def _edited_line() -> str | None:
    try:
        return input(PROMPT)
    except EOFError:
        return None


def talk(prompter: Prompter, next_line: Callable[[], str | None]) -> None:
    """Obey the user line by line to the end. On a terminal Ctrl-C ends what is being done or typed, and nothing more."""
    if prompter.is_terminal:
        prompter.greet()
    while not prompter.is_over:
        try:
            line = next_line()
            if line is None:
                break
            prompter.obey(line.strip())
        except KeyboardInterrupt:
            if not prompter.is_terminal:
                raise
            say()
    if prompter.is_terminal and not prompter.is_over:
        say()  # the shell's prompt gets a line of its own after Ctrl-D
