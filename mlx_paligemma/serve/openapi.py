"""The bodies of requests in the OpenAPI document: they are read by hand (see requests.py), so FastAPI does not know them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

REFERENCE = "#/components/schemas/{model}"


def body(model: type[BaseModel], has_form: bool = False) -> dict[str, Any]:
    """Of one endpoint: JSON, and a form with the picture as a file."""
    schema = {"$ref": REFERENCE.format(model=model.__name__)}
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if has_form:
        content["multipart/form-data"] = {"schema": {"$ref": REFERENCE.format(model=f"{model.__name__}Form")}}
    return {"requestBody": {"required": True, "content": content}}


def chat_answers() -> dict[int | str, dict[str, Any]]:
    """A completion, or the events of one."""
    content = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": {"type": "string"}}}
    return {200: {"description": "A completion in OpenAI's form, or server-sent events with its parts", "content": content}}


def add_bodies(app: FastAPI, models: Sequence[type[BaseModel]]) -> None:
    """Have the models, and the form of an error, described in the document."""
    made = app.openapi

    @cache
    def document() -> dict[str, Any]:
        whole = made()
        whole.setdefault("components", {}).setdefault("schemas", {}).update(_schemas(models))
        for operations in whole["paths"].values():
            for operation in operations.values():
                operation["responses"]["default"] = _error()
        return whole

    app.openapi = document  # type: ignore[method-assign]


def _schemas(models: Sequence[type[BaseModel]]) -> dict[str, Any]:
    _, found = models_json_schema([(model, "validation") for model in models], ref_template=REFERENCE)
    schemas: dict[str, Any] = found["$defs"]
    forms = {f"{name}Form": _form(schema) for name, schema in schemas.items() if "image" in schema.get("properties", {})}
    return schemas | forms | {"Error": _error_schema()}


def _form(schema: dict[str, Any]) -> dict[str, Any]:
    """The same fields, with the picture as a file."""
    file = {"type": "string", "format": "binary", "description": "the picture's file"}
    return schema | {"title": f"{schema['title']}Form", "properties": schema["properties"] | {"image": file}}


def _error() -> dict[str, Any]:
    schema = {"$ref": REFERENCE.format(model="Error")}
    return {"description": "What is wrong, in OpenAI's form", "content": {"application/json": {"schema": schema}}}


def _error_schema() -> dict[str, Any]:
    nullable = {"type": ["string", "null"]}
    fields = {"message": {"type": "string"}, "type": {"type": "string"}, "param": nullable, "code": nullable}
    inner = {"type": "object", "properties": fields, "required": [*fields]}
    return {"type": "object", "properties": {"error": inner}, "required": ["error"]}
