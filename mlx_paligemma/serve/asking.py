"""What all endpoints do with a request before it becomes a question: model, pictures, options, bounds."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from ..common.formats import as_record
from ..common.results import GenerationResult
from ..common.sampling import SamplingOptions
from .answers import Answer, Answers
from .api_errors import ApiError
from .chat_request import Sampling
from .pictures import data_uri_bytes
from .remote import Fetcher
from .settings import Settings


@dataclass(frozen=True)
class Asking:
    """The server's model, and what it allows."""

    settings: Settings
    answers: Answers
    logger: logging.Logger
    fetcher: Fetcher | None = field(default=None)  # None: no picture is fetched

    @property
    def context(self) -> int:
        """Tokens that the model can hold."""
        return self.answers.processor.config.text.max_position_embeddings

    def check_model(self, name: str | None) -> None:
        """Raises ApiError for a model that is not served here."""
        if name is not None and name != self.settings.model_name:
            raise ApiError(404, f"this server has one model, {self.settings.model_name!r}", "model", "model_not_found")

    def options(self, asked: Sampling, limit: int | None) -> SamplingOptions:
        """Raises ApiError where more tokens are asked for than the context holds."""
        context = self.context
        if limit is not None and limit > context:
            raise ApiError(400, f"max_tokens is {limit}; the model's context holds {context}", "max_tokens")
        return SamplingOptions(
            min(limit or self.settings.max_tokens, context),
            asked.temperature,
            asked.top_p,
            asked.top_k,
            asked.min_p,
            asked.seed,
            grammar=asked.grammar,
            min_score=asked.min_score,
        )

    async def pictures(self, addresses: Sequence[str], param: str = "messages") -> tuple[bytes, ...]:
        """The pictures' files. Raises ApiError, and ImageError where one cannot be fetched."""
        self.check_count(len(addresses), param)
        return tuple([await self._picture(address, param) for address in addresses])

    def check_count(self, images: int, param: str) -> None:
        """Raises ApiError for none, or too many."""
        if not images:
            raise ApiError(400, "there is no picture; PaliGemma needs at least one", param)
        if images > self.settings.max_images:
            raise ApiError(400, f"there are {images} pictures; a request may have at most {self.settings.max_images}", param)

    def log_prompt(self, request: Request, prompt: str) -> None:
        """Only where the owner of the server wants it."""
        if self.settings.log_prompts:
            self.logger.info("%s prompt %s", request.scope["state"]["request_id"], json.dumps(prompt))

    async def _picture(self, address: str, param: str) -> bytes:
        kind = address[:8].lower()
        if kind.startswith("data:"):
            return await asyncio.to_thread(data_uri_bytes, address, param)
        if not kind.startswith("https://"):
            raise ApiError(400, "a picture is given as a data: address, or where the server allows it as an https:// one", param)
        if self.fetcher is None:
            raise ApiError(400, "this server fetches no pictures; send a data: address (--allow-remote-images permits it)", param)
        return await self.fetcher.fetch(address)


def usage(answers: Sequence[Answer]) -> dict[str, int]:
    """What answers cost, in tokens."""
    prompt = answers[0].result.stats.prompt_tokens if answers else 0
    generated = sum(answer.result.stats.generation_tokens for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


def result_record(prompt: str, result: GenerationResult) -> dict[str, Any]:
    """Text, size of the first picture, detections with COCO's run-length masks, notes."""
    record = as_record("", prompt, result)
    return {name: record[name] for name in ("text", "width", "height", "detections")} | {"notes": [*result.notes]}
