"""The command `mlx-paligemma` and what all its commands share: how errors and interruptions end the program."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any

import typer

from .. import __version__
from ..common.errors import OptionError, PaliGemmaError

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130  # exit codes
COMMANDS = {  # each a function in the file of its name; what it is for stands here too, so that --help need not read the files
    "generate": "Answer a prompt about one or more pictures.",
    "chat": "Ask about one picture, question after question. It is encoded once. /help lists the commands.",
    "convert": "Write a checkpoint in another form: quantised, unpacked, in another dtype, for MLX or for other programs.",
    "serve": "Serve OpenAI's chat API and boxes, masks and captions over HTTP; requests are decoded together.",
    "ui": "Show a web page to caption, question, detect and segment, with any model.",
    "evaluate-quantization": "Measure what quantising costs: the demo model's accuracy, or agreement with the unquantised model.",
    "benchmark": "Measure speed and memory, and compare them with what this machine's own bandwidth and arithmetic allow.",
    "doctor": "Check what this machine can do: devices, backends, memory, the Hub, and which models fit.",
    "parity": "Compare MLX with a PyTorch reference: module by module, from pixels to logits, token by token.",
}


def main() -> None:
    """Entry point of the program."""
    _open_standard_streams()
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")  # Pillow's, of pictures that it opens all the same
    with reporting():
        _app()(prog_name="mlx-paligemma")


def _app() -> typer.Typer:
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name, purpose in COMMANDS.items():
        app.command(name, help=purpose)(_command(name))
    return app


def _command(name: str) -> Callable[..., Any]:
    """A command's function; where it is not asked for, one that only stands in the list, since its imports take their time."""
    function = name.replace("-", "_")
    return getattr(import_module(f".{function}", __package__), function) if name in sys.argv else lambda: None


@contextmanager
def reporting() -> Iterator[None]:
    """Turn what a user can cause into one line on stderr and an exit code."""
    try:
        yield
    except PaliGemmaError as error:
        fail(str(error), WRONG_USAGE if isinstance(error, OptionError) else FAILED)
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(FAILED) from None
    except OSError as error:
        where = "a file" if error.filename is None else str(error.filename)
        reason = error.strerror or error
        fail(f"{where} cannot be read or written ({reason}); check the path, its permissions and the free space", FAILED)


def fail(message: str, code: int) -> None:
    """Say what is wrong in one line, and stop."""
    sys.stdout.flush()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)


def _open_standard_streams() -> None:
    """A daemon may have closed them: the next file opened would take their place. Names that are no text must not end a run."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version and stop.")
    ] = False,
) -> None:
    """PaliGemma and PaliGemma 2 in MLX: caption, answer, read, detect and segment."""
