"""What every request passes before the application sees it: the key, the asking page, how many are open, the body's bounds."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .api_errors import ApiError
from .settings import Settings

OPEN_TO_ALL = ("/health", "/docs", "/openapi.json")  # without a key; they tell nothing of anybody


@dataclass
class Gate:
    """An ASGI application around another one."""

    app: ASGIApp
    settings: Settings
    open_requests: int = 0  # that have a body: they are those that cost

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or refuse it without reading its body."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._check(scope, Headers(scope=scope))
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        cost = int(_has_body(scope))
        self.open_requests += cost
        try:
            await self.app(scope, _bounded(receive, self.settings), send)
        finally:
            self.open_requests -= cost

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raises ApiError."""
        if scope["path"] not in OPEN_TO_ALL:
            self._check_key(headers)
        if not _has_body(scope):
            return
        self._check_origin(headers)
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(415, "the body is compressed; send it as it is, without Content-Encoding")
        if self.open_requests >= self.settings.max_rows + self.settings.max_waiting:
            raise ApiError(429, f"{self.open_requests} requests are open, as many as the server takes; ask again later")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.settings.max_body_bytes:
            raise too_large(self.settings)

    def _check_key(self, headers: Headers) -> None:
        """In constant time."""
        if self.settings.api_key is None:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode(), self.settings.api_key.encode())
        if kind.lower() != "bearer" or not same:
            raise ApiError(401, "the API key is missing or wrong; send it as Authorization: Bearer KEY")

    def _check_origin(self, headers: Headers) -> None:
        """A browser says which page asks. Without this any page could use a server on the loopback interface of its visitor."""
        origin = headers.get("origin")
        if origin is None or origin in self.settings.cors_origins or "*" in self.settings.cors_origins:
            return
        parts = urlsplit(origin)
        if parts.netloc != headers.get("host") or not _is_own_name(parts.hostname or ""):
            raise ApiError(403, "pages of other origins may not ask this server (--cors-origin permits one)", code="origin_refused")


def too_large(settings: Settings) -> ApiError:
    """What a body that is too large is answered with."""
    return ApiError(413, f"the body is larger than {settings.max_body_bytes} bytes; shrink the picture")


def _has_body(scope: Scope) -> bool:
    return scope["method"] not in ("GET", "HEAD")


def _is_own_name(host: str) -> bool:
    """Whether a page's host cannot be a name that somebody else has pointed here."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True


def _bounded(receive: Receive, settings: Settings) -> Receive:
    """The same, with the body's size and time bounded; after the body it waits for as long as the client stays."""
    size, is_whole, deadline = 0, False, time.monotonic() + settings.body_timeout

    async def bounded() -> Message:
        nonlocal size, is_whole
        if is_whole:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(min(settings.idle_timeout, deadline - time.monotonic()), 0))
        except TimeoutError:
            raise ApiError(408, "the body did not come in time") from None
        size += len(message.get("body", b""))
        if size > settings.max_body_bytes:
            raise too_large(settings)
        is_whole = not message.get("more_body", False)
        return message

    return bounded
