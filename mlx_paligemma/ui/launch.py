"""The page from its settings to its end."""

from __future__ import annotations

import socket
from dataclasses import dataclass

import gradio as gr
from starlette.middleware import Middleware

from ..common.errors import OptionError
from ..serve.settings import LOOPBACK
from .body_limit import BodyLimit
from .look import CSS, theme
from .origin_check import OriginCheck
from .page import make_page
from .runners import MAX_ROWS, MAX_WAITING
from .site import Site


@dataclass(frozen=True)
class Address:
    """Where the page listens, and who may see it."""

    host: str = "127.0.0.1"
    port: int = 7860  # 0: any free one
    share: bool = False  # also at a public address of Gradio's
    auth: tuple[str, str] | None = None  # user, password

    @property
    def is_private(self) -> bool:
        """Whether only this machine reaches it."""
        return self.host in LOOPBACK and not self.share


@dataclass(frozen=True)
class Shown:
    """A page that is shown. `close` it."""

    page: gr.Blocks
    local: str  # its address
    public: str | None

    def close(self) -> None:
        """Show it no more."""
        self.page.close(verbose=False)


def show(site: Site, address: Address) -> Shown:
    """Show the page in a thread of its own.

    Raises:
        OptionError: the address cannot be had.
    """
    page, settings = make_page(site), site.settings
    page.queue(max_size=MAX_ROWS + MAX_WAITING, api_open=False)
    port = address.port or _free_port(address.host)
    try:
        _, local, public = page.launch(
            server_name=address.host,
            server_port=port,
            share=address.share,
            auth=address.auth,
            max_file_size=settings.max_file_bytes,
            max_threads=MAX_ROWS + MAX_WAITING,
            theme=theme(),
            css=CSS,
            footer_links=["settings"],
            run_history=False,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            quiet=True,
            inbrowser=False,
            prevent_thread_lock=True,
            app_kwargs={
                "middleware": [
                    Middleware(OriginCheck, any_name=not address.is_private),
                    Middleware(BodyLimit, upload_bytes=settings.max_files * settings.max_file_bytes),
                ],
            },
        )
    except OSError as error:
        raise OptionError(f"--host {address.host} --port {port} cannot be listened on ({_reason(error)}); choose another") from None
    return Shown(page, local, public)


def _free_port(host: str) -> int:
    """Raises OptionError where the host is no address of this machine."""
    try:
        with socket.create_server((host, 0)) as listener:
            port: int = listener.getsockname()[1]
            return port
    except OSError as error:
        raise OptionError(f"--host {host} cannot be listened on ({_reason(error)}); choose another") from None


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).splitlines()[0].rstrip(".")
