"""Errors as OpenAI's API has them: {"error": {"message", "type", "param", "code"}} under the right status.

Source: https://platform.openai.com/docs/guides/error-codes. No message holds a path or a trace.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..common.errors import BusyError, ImageError, NumericError, OptionError, PaliGemmaError, PromptError, TooLargeError

RETRY_AFTER = 1  # seconds
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_CODES = {
    401: "invalid_api_key", 404: "not_found", 405: "method_not_allowed", 408: "timeout", 413: "too_large",
    415: "unsupported_media_type", 429: "server_busy", 503: "unavailable",
}  # fmt: skip
_STATUS_OF: dict[type[PaliGemmaError], int] = {
    ImageError: 400,
    PromptError: 400,
    OptionError: 400,
    BusyError: 429,
    TooLargeError: 503,
    NumericError: 500,
}


class ApiError(Exception):
    """A request that is refused: status, one line, the parameter that is to blame, and a word for programs."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.code = _CODES.get(status) if code is None else code

    def body(self) -> dict[str, Any]:
        """The JSON form."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer. A connection whose body was not read to its end is of no further use."""
        headers = {"connection": "close"} if self.status in (408, 413, 429) else {}
        headers |= {"retry-after": str(RETRY_AFTER)} if self.status in (429, 503) else {}
        headers |= {"www-authenticate": "Bearer"} if self.status == 401 else {}
        return JSONResponse(self.body(), self.status, headers)


def api_error(error: Exception) -> ApiError:
    """Any error as one that may be shown. What was not foreseen says nothing of itself."""
    if isinstance(error, ApiError):
        return error
    status = next((status for kind, status in _STATUS_OF.items() if isinstance(error, kind)), None)
    if status is not None:
        return ApiError(status, str(error))
    return ApiError(500, "the server failed at this request; its log says more under the request's id", code="internal_error")


def add_error_handlers(app: FastAPI) -> None:
    """Have all errors of an application answered in this form."""
    app.add_exception_handler(ApiError, _answer)
    app.add_exception_handler(PaliGemmaError, _answer)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    app.add_exception_handler(Exception, _answer)


def _answer(request: Request, error: Exception) -> Response:
    return api_error(error).response()


def _answer_http(request: Request, error: Exception) -> Response:
    """Of the framework: no such place, no such method, a form that is none."""
    assert isinstance(error, HTTPException)
    detail = str(error.detail)
    message = detail if error.status_code == 400 else f"{request.method} {request.url.path}: {HTTPStatus(error.status_code).phrase}"
    response = ApiError(error.status_code, message).response()
    response.headers.update(error.headers or {})
    return response


def _answer_nobody(request: Request, error: Exception) -> Response:
    """The client went before it had sent all."""
    return Response(status_code=400, headers={"connection": "close"})
