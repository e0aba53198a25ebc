"""A server from flags to its end: the model is loaded once, then requests are answered until a signal comes."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import uvicorn

from ..common.errors import OptionError
from ..common.processor import PaliGemmaProcessor
from ..fusion import FusedPaliGemma
from ..weights import load
from .answers import Answers
from .app import make_app
from .connection import TimedConnection
from .engine import Engine
from .metrics import Metrics
from .settings import Settings

BACKLOG = 128  # connections that wait to be accepted


class Server:
    """A loaded model behind an address. Use `run`, and from elsewhere `stop`."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        model: str | Path | None = None,
        dtype: str | None = None,
        revision: str | None = None,
    ):
        """Raises what loading raises (see weights.load)."""
        found: list[PaliGemmaProcessor] = []

        def load_model() -> FusedPaliGemma:
            network, processor = load(model, dtype=dtype, revision=revision)
            found.append(processor)
            assert isinstance(network, FusedPaliGemma)
            return network

        logger = logging.getLogger(__name__)
        metrics, self._listener = Metrics(), listener
        self.engine = Engine(load_model, settings.max_rows, 2 * settings.max_rows)
        self.answers = Answers(self.engine, found[0], metrics, settings.max_rows, settings.max_image_pixels)
        self._server = uvicorn.Server(_configuration(settings, self.answers, metrics, logger))

    @property
    def is_ready(self) -> bool:
        """Whether it answers."""
        return self._server.started

    def run(self) -> None:
        """Answer until `stop`, or SIGINT or SIGTERM where this is the main thread; what runs is finished first."""
        self._server.run(sockets=[self._listener])

    def stop(self) -> None:
        """Take nothing new, and end when all is finished."""
        self._server.should_exit = True


def listen(host: str, port: int) -> socket.socket:
    """A socket on an address; port 0: any free one. Raises OptionError where it cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"--host {host} --port {port} cannot be listened on ({reason}); choose another port") from None


def _configuration(settings: Settings, answers: Answers, metrics: Metrics, logger: logging.Logger) -> uvicorn.Config:
    """No proxy's headers are believed, and nothing is told of the server's kind."""
    return uvicorn.Config(
        make_app(settings, answers, metrics, logger),
        http=TimedConnection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=max(round(settings.idle_timeout), 1),
        timeout_graceful_shutdown=round(settings.shutdown_timeout),
    )
