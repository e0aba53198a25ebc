"""The application: endpoints, their documentation, and the layers around them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from .. import __version__
from .access import ID_HEADER, Access
from .answers import Answers
from .api_errors import add_error_handlers
from .asking import Asking
from .chat import Chat
from .chat_request import ChatRequest, Strict
from .chat_response import ChatResponse
from .detect import CaptionRequest, CaptionResponse, LocateRequest, LocateResponse, Tasks
from .gate import OPEN_TO_ALL, Gate
from .metrics import Metrics
from .openapi import CAPTION, CHAT, LOCATE, body, chat_answer, complete_document, text_answer
from .remote import Fetcher
from .settings import Settings

PATHS = frozenset(
    (
        "/v1/chat/completions",
        "/v1/models",
        "/v1/detect",
        "/v1/segment",
        "/v1/caption",
        "/health",
        "/metrics",
        "/openapi.json",
        "/docs",
    )
)
FIGURES = "text/plain"


class ModelEntry(Strict):
    """A model, in OpenAI's form."""

    id: str
    object: Literal["model"]
    created: int  # seconds since 1970, of the server's start
    owned_by: str


class ModelList(Strict):
    """All models."""

    object: Literal["list"]
    data: list[ModelEntry]


class Health(Strict):
    """That the server runs."""

    status: Literal["ok"]
    model: str
    version: str


@dataclass(frozen=True)
class About:
    """What the server tells of itself."""

    settings: Settings
    metrics: Metrics
    started: int = field(default_factory=lambda: int(time.time()))

    async def models(self) -> ModelList:
        """The one model that this server has."""
        entry = ModelEntry(id=self.settings.model_name, object="model", created=self.started, owned_by="mlx-paligemma")
        return ModelList(object="list", data=[entry])

    async def health(self) -> Health:
        """That the server runs, and with which model."""
        return Health(status="ok", model=self.settings.model_name, version=__version__)

    async def figures(self) -> Response:
        """Figures in Prometheus's text form."""
        return Response(self.metrics.text(), media_type=f"{FIGURES}; version=0.0.4; charset=utf-8")


def make_app(settings: Settings, answers: Answers, metrics: Metrics, logger: logging.Logger) -> ASGIApp:
    """The whole application. When its server stops, it finishes what runs and closes `answers`."""
    fetcher = Fetcher(settings.max_body_bytes, settings.remote_timeout) if settings.allow_remote_images else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(answers.close)

    app = FastAPI(title="mlx-paligemma", version=__version__, lifespan=lifespan, redoc_url=None)
    _add_routes(app, Asking(settings, answers, logger, fetcher), About(settings, metrics))
    add_error_handlers(app)
    inner: ASGIApp = Gate(app, settings)
    if settings.cors_origins:
        inner = CORSMiddleware(
            inner,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[ID_HEADER],
        )
    return Access(inner, metrics, logger, PATHS)


def _add_routes(app: FastAPI, asking: Asking, about: About) -> None:
    app.add_api_route("/health", about.health, methods=["GET"])
    app.add_api_route("/metrics", about.figures, methods=["GET"], response_class=Response, responses=text_answer(FIGURES))
    app.add_api_route("/v1/models", about.models, methods=["GET"])
    chat, tasks = Chat(asking), Tasks(asking)
    extra = body(ChatRequest, CHAT)
    responses = chat_answer(ChatResponse)
    app.add_api_route("/v1/chat/completions", chat.complete, methods=["POST"], openapi_extra=extra, responses=responses)
    for path, endpoint in (("/v1/detect", tasks.detect), ("/v1/segment", tasks.segment)):
        extra = body(LocateRequest, LOCATE, has_form=True)
        app.add_api_route(path, endpoint, methods=["POST"], response_model=LocateResponse, openapi_extra=extra)
    extra = body(CaptionRequest, CAPTION, has_form=True)
    app.add_api_route("/v1/caption", tasks.caption, methods=["POST"], response_model=CaptionResponse, openapi_extra=extra)
    most = {"max_tokens": asking.context, "max_completion_tokens": asking.context, "n": asking.settings.max_choices}
    keyless = None if asking.settings.api_key is None else OPEN_TO_ALL
    complete_document(app, (ChatRequest, LocateRequest, CaptionRequest), (ChatResponse,), most, keyless)
