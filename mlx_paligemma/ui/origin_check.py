"""An ASGI application around Gradio's, which would take uploads and questions from any page that a visitor's browser has open."""

from __future__ import annotations

import ipaddress
import re

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class OriginCheck:
    """Refuses requests of other pages, and those to a name that somebody else may have pointed here (DNS rebinding).

    `any_name`: the page has names that it cannot know, as on a network or at a public address.
    """

    def __init__(self, app: ASGIApp, any_name: bool):
        self.app, self._any_name = app, any_name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 without reading the body."""
        if scope["type"] == "http" and not self._is_own(Headers(scope=scope)):
            refusal = PlainTextResponse("pages of other addresses may not use this one", 403, {"connection": "close"})
            await refusal(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _is_own(self, headers: Headers) -> bool:
        """A browser says which page asks, except where it only goes to the page or shows a picture of it.

        A proxy may tell the name under which the page is known; another page cannot, without asking first (CORS).
        """
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._any_name and not _is_own_name(host):
            return False
        names = {name.lower() for name in (host, headers.get("x-forwarded-host", "")) if name}
        return origin is None or origin.lower().partition("://")[2] in names


def _is_own_name(host: str) -> bool:
    """Whether a host, with or without a port, is no name that leads here only because its owner says so."""
    name = re.sub(r":\d+$", "", host).strip("[]")
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.lower() == "localhost"
    return True
