"""An ASGI application around Gradio's, which would read a body of any size into memory."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

JSON_BYTES = 4 * 2**20  # of an event's values; pictures are uploaded apart from them
DIGITS = 18  # of a length; Python reads no number of thousands
PATIENCE = 30.0  # seconds without a byte of a body
UPLOAD = "/gradio_api/upload"  # of all addresses that end so, the one whose body goes to disk


class BodyLimit:
    """Refuses bodies above a limit: of an upload, which is written to disk as it comes, and of everything else."""

    def __init__(self, app: ASGIApp, upload_bytes: int):
        self.app, self._upload_bytes = app, upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 413 before or while a body is too large."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = self._upload_bytes if scope["path"] == UPLOAD else JSON_BYTES
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdecimal() or len(length) > DIGITS or int(length) > most:
            await PlainTextResponse("too large", 413, {"connection": "close"})(scope, receive, send)
            return
        await self.app(scope, _bounded(receive, most), send)


def _bounded(receive: Receive, most: int) -> Receive:
    """The same; a body that grows above the limit, or of which nothing comes for long, ends as if its sender had gone."""
    size, is_whole = 0, False

    async def bounded() -> Message:
        nonlocal size, is_whole
        try:
            message = await asyncio.wait_for(receive(), None if is_whole else PATIENCE)
        except TimeoutError:
            return {"type": "http.disconnect"}
        size += len(message.get("body", b""))
        is_whole = not message.get("more_body", False)
        return {"type": "http.disconnect"} if size > most else message

    return bounded
