"""`mlx-paligemma ui`: the web page."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from ..common.ending_signals import EndingSignals
from ..common.errors import BackendError, OptionError
from ..serve.settings import LOOPBACK
from ..ui.model_spec import ModelSpec
from ..ui.settings import Settings
from . import flags
from .app import reporting
from .flags import BackendName


def ui(
    model: flags.Model = None,
    revision: flags.Revision = None,
    backend: flags.Backend = BackendName.mlx,
    dtype: flags.Dtype = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines see the page.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 7860,
    share: Annotated[
        bool, typer.Option("--share", help="Also show the page at a public address, through Gradio's servers.")
    ] = False,
    auth: Annotated[
        str | None, typer.Option(envvar="MLX_PALIGEMMA_UI_AUTH", metavar="USER:PASSWORD", help="Ask visitors for these.")
    ] = None,
    swap: Annotated[
        bool | None,
        typer.Option("--swap/--no-swap", help="Let visitors load other models. Left out: only on this machine alone."),
    ] = None,
    max_file_size: Annotated[float, typer.Option(min=0.001, help="Megabytes of an uploaded file.")] = 20.0,
    max_megapixels: Annotated[float, typer.Option(min=0.001, help="Of a picture; counted before it is decoded.")] = 50.0,
) -> None:
    """Show a web page to caption, question, detect and segment, with any model."""
    with reporting():
        _check_extra()
        visitor, is_private = _visitor(auth), host in LOOPBACK and not share
        spec = ModelSpec(model, backend.value, dtype.value if dtype else None, revision)
        limits = Settings(is_private if swap is None else swap, int(max_file_size * 1e6), int(max_megapixels * 1e6))
        with EndingSignals() as signals, TemporaryDirectory(prefix="mlx-paligemma-", ignore_cleanup_errors=True) as folder:
            _keep_in(folder)
            with signals.heard():
                _show(spec, limits, Path(folder), (host, port, share, visitor))


def _show(spec: ModelSpec, settings: Settings, folder: Path, address: tuple[str, int, bool, tuple[str, str] | None]) -> None:
    """Until a signal comes."""
    from ..ui.launch import Address, show
    from ..ui.shelf import Shelf
    from ..ui.site import Site

    with closing(Shelf()) as shelf:
        for line in shelf.load(spec):
            print(line, file=sys.stderr)
        with closing(show(Site(shelf, settings, folder / "files"), Address(*address))) as shown:
            _greet(shown.local, shown.public, is_open=address[0] not in LOOPBACK and address[3] is None)
            threading.Event().wait()


def _check_extra() -> None:
    """Raises BackendError where the package of the extra is not there."""
    if find_spec("gradio") is None:
        raise BackendError("ui needs the package gradio; install it with: pip install 'mlx-paligemma[ui]'")


def _visitor(auth: str | None) -> tuple[str, str] | None:
    """User and password. Raises OptionError where one of them is missing."""
    if auth is None:
        return None
    user, _, password = auth.partition(":")
    if not user or not password:
        raise OptionError("--auth wants a user and a password, as in --auth anna:secret")
    return user, password


def _keep_in(folder: str) -> None:
    """Uploads and downloads are in a folder that goes with the program; and Gradio asks nobody about itself."""
    os.environ |= {"GRADIO_TEMP_DIR": str(Path(folder) / "gradio"), "GRADIO_ANALYTICS_ENABLED": "False"}
    tempfile.tempdir = folder


def _greet(local: str, public: str | None, is_open: bool) -> None:
    print(f"the page is at {local}; Ctrl-C ends it", file=sys.stderr)
    if public:
        print(f"and for everybody at {public}", file=sys.stderr)
    if public or is_open:
        print("note: whoever has the address can use it; --auth USER:PASSWORD asks for a password", file=sys.stderr)
