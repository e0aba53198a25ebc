"""Several answers as one stream, and work that goes on for as long as somebody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

T = TypeVar("T")


async def merged(streams: Sequence[AsyncGenerator[T, None]]) -> AsyncGenerator[tuple[int, T], None]:
    """What several streams give, as it comes, each with its stream's number. Closing it closes them; the first error ends all."""
    events: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue()
    pumps = [asyncio.create_task(_pump(number, stream, events)) for number, stream in enumerate(streams)]
    try:
        open_streams = len(pumps)
        while open_streams:
            event = await events.get()
            if isinstance(event, Exception):
                raise event
            if event is None:
                open_streams -= 1
            else:
                yield event
    finally:
        for pump in pumps:
            pump.cancel()


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives. Raises ClientDisconnect, and cancels it, where the client goes first."""
    working, watching = asyncio.ensure_future(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)  # so that nothing runs in a stream that is closed next


async def _pump(number: int, stream: AsyncGenerator[T, None], events: asyncio.Queue[tuple[int, T] | Exception | None]) -> None:
    try:
        async with aclosing(stream):
            async for event in stream:
                events.put_nowait((number, event))
        events.put_nowait(None)
    except Exception as error:  # noqa: BLE001 - it belongs to whoever reads the stream
        events.put_nowait(error)


async def _gone(request: Request) -> None:
    """Until the client has gone; its body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
