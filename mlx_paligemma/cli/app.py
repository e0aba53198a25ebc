"""The command `mlx-paligemma` and what all its commands share: how errors and interruptions end the program."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from .. import __version__
from ..common.errors import OptionError, PaliGemmaError

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130  # exit codes


def main() -> None:
    """Entry point of the program."""
    _open_standard_streams()
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit")  # Pillow's, of pictures that it opens all the same
    with reporting():
        _app()(prog_name="mlx-paligemma")


def _app() -> typer.Typer:
    from .chat import chat
    from .doctor import doctor
    from .generate import generate
    from .parity import parity

    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    app.command()(generate)
    app.command()(chat)
    app.command()(doctor)
    app.command()(parity)
    return app


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
