"""`mlx-paligemma serve`: the model behind OpenAI's HTTP interface."""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from ..common.errors import BackendError
from ..serve.settings import LOOPBACK, Settings
from . import flags
from .app import reporting

NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def serve(  # noqa: PLR0913, PLR0917 - a command has many flags
    model: flags.Model = None,
    revision: flags.Revision = None,
    dtype: flags.Dtype = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines ask.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8080,
    api_key: Annotated[
        str | None, typer.Option(envvar="MLX_PALIGEMMA_API_KEY", help="What requests must carry as Authorization: Bearer KEY.")
    ] = None,
    model_name: Annotated[
        str | None, typer.Option(help="What requests call the model. Left out: its id, or its folder's name.")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-m", min=1, help="New tokens, where a request does not say.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers that are made together.")] = 8,
    max_waiting: Annotated[int, typer.Option(min=0, help="Requests that may wait; more are told to come later (429).")] = 64,
    max_images: Annotated[int, typer.Option(min=1, help="Pictures in one request.")] = 8,
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Megabytes of a request.")] = 20.0,
    max_megapixels: Annotated[float, typer.Option(min=0.001, help="Of a picture; counted before it is decoded.")] = 50.0,
    allow_remote_images: Annotated[
        bool, typer.Option("--allow-remote-images", help="Fetch pictures from public https addresses.")
    ] = False,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="A web page's origin that may ask, such as https://a.example.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for which a client may neither send nor read.")] = 10.0,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts to the log.")] = False,
) -> None:
    """Serve OpenAI's chat API and boxes, masks and captions over HTTP; requests are decoded together."""
    with reporting():
        _check_extra()
        from ..serve.server import Server, listen

        settings = Settings(
            model_name=model_name or _name(model),
            api_key=api_key,
            cors_origins=tuple(cors_origin or ()),
            max_rows=batch_size,
            max_waiting=max_waiting,
            max_images=max_images,
            max_body_bytes=int(max_body_mb * 1e6),
            max_image_pixels=int(max_megapixels * 1e6),
            max_tokens=max_tokens,
            allow_remote_images=allow_remote_images,
            idle_timeout=timeout,
            log_prompts=log_prompts,
        )
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
        with listen(host, port) as listener:
            server = Server(settings, listener, model, None if dtype is None else dtype.value, revision)
            _greet(settings.model_name, listener.getsockname(), open_to_all=host not in LOOPBACK and api_key is None)
            server.run()


def _check_extra() -> None:
    """Raises BackendError where the packages of the extra are not there."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise BackendError(f"serve needs the package {missing[0]}; install it with: pip install 'mlx-paligemma[server]'")


def _name(model: str | None) -> str:
    """What requests call a model: its Hub id, or its folder's name without the path to it."""
    if model is None:
        return "demo"
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else model


def _greet(name: str, address: tuple[str, int], open_to_all: bool) -> None:
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    print(f"{name} at http://{host}:{address[1]}/v1, its description at /docs; Ctrl-C ends it", file=sys.stderr)
    if open_to_all:
        print("note: other machines can ask without a key; --api-key asks for one", file=sys.stderr)
