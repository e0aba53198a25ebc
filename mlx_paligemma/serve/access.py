"""The outermost layer: an id for every request, a line in the log and figures for its end. Never prompts or pictures."""

from __future__ import annotations

import logging
import re
import secrets
import time
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Metrics

ID_HEADER = "x-request-id"
_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
GONE = 499  # nginx's status for a client that left before its answer


@dataclass
class Access:
    """An ASGI application around another one."""

    app: ASGIApp
    metrics: Metrics
    logger: logging.Logger
    paths: frozenset[str]  # those that figures are kept for; all others are one

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and note what became of it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = _Request(_request_id(scope))
        scope.setdefault("state", {})["request_id"] = request.id
        try:
            await self.app(scope, receive, request.noting(send))
        except Exception:
            request.status = request.status or 500
            self.logger.exception("%s failed", request.id)
            if not request.is_complete:
                raise
        finally:
            self._note(scope, request)

    def _note(self, scope: Scope, request: _Request) -> None:
        path = scope["path"] if scope["path"] in self.paths else "other"
        seconds, status = time.perf_counter() - request.started, request.status or GONE
        self.metrics.request(path, status, seconds)
        self.logger.info("%s %s %s %d %.3f s", request.id, scope["method"], path, status, seconds)


@dataclass
class _Request:
    id: str
    status: int = 0
    is_complete: bool = False  # whether the whole answer has been sent
    started: float = field(default_factory=time.perf_counter)

    def noting(self, send: Send) -> Send:
        """The same, with the id among the headers."""

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                MutableHeaders(scope=message)[ID_HEADER] = self.id
            await send(message)
            self.is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        return noted


def _request_id(scope: Scope) -> str:
    """The client's, where it is harmless in a log; else a new one."""
    given = Headers(scope=scope).get(ID_HEADER, "")
    return given if _ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"
