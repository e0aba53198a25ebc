"""Clients that ask, one request after the other, and count what comes of it."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from .questions import Question

PATH = "/v1/chat/completions"
PATIENCE = 120.0  # seconds for one answer


@dataclass(frozen=True)
class Load:
    """How much is asked."""

    clients: int
    seconds: float
    seed: int


@dataclass
class Tally:
    """What came of all requests. Times are seconds, of answered requests, from the head sent to the end or first token."""

    right: int = 0
    wrong: int = 0
    refused: int = 0  # 429
    errors: list[str] = field(default_factory=list)
    differences: list[dict[str, str]] = field(default_factory=list)  # of wrong answers
    tokens: int = 0
    latencies: list[float] = field(default_factory=list)
    first_tokens: list[float] = field(default_factory=list)  # of streamed answers
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Counts, rates, medians and 95th percentiles."""
        answered = self.right + self.wrong
        return {
            "right": self.right,
            "wrong": self.wrong,
            "refused_429": self.refused,
            "errors": len(self.errors),
            "first_errors": self.errors[:3],
            "differences": self.differences[:3],
            "requests_per_s": round(answered / self.seconds, 2),
            "tokens_per_s": round(self.tokens / self.seconds, 1),
            **_quantiles("latency_s", self.latencies),
            **_quantiles("time_to_first_token_s", self.first_tokens),
        }


async def ask_all(address: str, questions: Sequence[Question], load: Load) -> Tally:
    """Let all clients ask until the time is over; what was begun is finished."""
    tally = Tally()
    limits = httpx.Limits(max_connections=load.clients)
    async with httpx.AsyncClient(base_url=address, timeout=PATIENCE, limits=limits) as client:
        started = time.monotonic()
        deadline = started + load.seconds
        asking = [
            _client(client, questions, random.Random(load.seed * 1000 + number), deadline, tally) for number in range(load.clients)
        ]
        await asyncio.gather(*asking)
        tally.seconds = time.monotonic() - started
    return tally


async def _client(
    client: httpx.AsyncClient, questions: Sequence[Question], rng: random.Random, deadline: float, tally: Tally
) -> None:
    while time.monotonic() < deadline:
        question, is_streamed = rng.choice(questions), rng.random() < 0.5
        wait = None
        try:
            wait = await (_streamed if is_streamed else _whole)(client, question, tally)
        except (httpx.HTTPError, KeyError, ValueError) as error:
            tally.errors.append(f"{type(error).__name__}: {error}"[:300])
        if wait is not None:
            tally.refused += 1
            await asyncio.sleep(wait)


async def _whole(client: httpx.AsyncClient, question: Question, tally: Tally) -> float | None:
    """Seconds to wait where the server is busy."""
    started = time.monotonic()
    response = await client.post(PATH, json=question.body(is_streamed=False))
    if response.status_code == 429:
        return float(response.headers["retry-after"])
    if response.status_code != 200:
        raise ValueError(f"{response.status_code} {response.text}")
    data = response.json()
    _note(tally, question, data["choices"][0]["message"]["content"], data["usage"], started)
    return None


async def _streamed(client: httpx.AsyncClient, question: Question, tally: Tally) -> float | None:
    """Seconds to wait where the server is busy."""
    started, first, text, usage, is_whole = time.monotonic(), None, "", {}, False
    async with client.stream("POST", PATH, json=question.body(is_streamed=True)) as response:
        if response.status_code == 429:
            return float(response.headers["retry-after"])
        if response.status_code != 200:
            raise ValueError(f"{response.status_code} {(await response.aread()).decode()}")
        async for line in response.aiter_lines():
            is_whole = is_whole or line == "data: [DONE]"
            event = json.loads(line[6:]) if line.startswith("data: {") else {"choices": []}
            if "error" in event:
                raise ValueError(f"in a stream: {event['error']}")
            usage = event.get("usage") or usage
            content = "".join(choice["delta"].get("content", "") for choice in event["choices"])
            if content and first is None:
                first = time.monotonic() - started
            text += content
    if not is_whole:
        raise ValueError("a stream had no end")
    tally.first_tokens += [] if first is None else [first]  # an answer may be empty
    _note(tally, question, text, usage, started)
    return None


def _note(tally: Tally, question: Question, text: str, usage: dict[str, int], started: float) -> None:
    tally.latencies.append(time.monotonic() - started)
    tally.tokens += usage["completion_tokens"]
    if text == question.answer and usage["completion_tokens"] == question.tokens:
        tally.right += 1
    else:
        tally.wrong += 1
        tally.differences.append({"prompt": question.prompt, "single": question.answer, "server": text})


def _quantiles(name: str, values: list[float]) -> dict[str, float | None]:
    return {f"{name}_p{share}": round(float(np.percentile(values, share)), 3) if values else None for share in (50, 95)}
