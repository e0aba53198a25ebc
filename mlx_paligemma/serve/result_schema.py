"""The detection result as JSON, and whether a caller's JSON schema describes it.

The model cannot follow any schema; its boxes can be had by any schema that they fit: a part of `{"detections": [{"label", "box",
"score", "mask"}], "width", "height", "text"}`. What a schema does not name is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .api_errors import ApiError

Schema = dict[str, Any]

_NUMBER: Schema = {"type": "number"}
_MASK: Schema = {
    "type": "object",
    "properties": {"size": {"type": "array", "items": {"type": "integer"}}, "counts": {"type": "string"}},
}
_DETECTION: Schema = {
    "type": "object",
    "properties": {
        "label": {"type": "string"},
        "box": {"type": "array", "items": _NUMBER},
        "score": {"type": ["number", "null"]},
        "mask": {**_MASK, "type": ["object", "null"]},
    },
}
RESULT: Schema = {
    "type": "object",
    "properties": {
        "detections": {"type": "array", "items": _DETECTION},
        "width": {"type": "integer"},
        "height": {"type": "integer"},
        "text": {"type": "string"},
    },
}
_SILENT = {"title", "description", "$defs", "definitions", "default", "examples", "required", "additionalProperties", "strict"}
_KNOWN = _SILENT | {"type", "properties", "items", "anyOf", "minItems", "maxItems", "prefixItems"}
_DEEPEST = 8  # of a caller's schema; ours has 4


def check_schema(schema: Schema) -> None:
    """Raises ApiError where a schema asks for what the detection result does not hold."""
    for problem in _problems(schema, RESULT, "schema", schema, 0):
        raise ApiError(400, f"{problem}; the answer is {_described()}", "response_format", "unsupported_schema")


def project(value: Any, schema: Schema, root: Schema) -> Any:
    """The part of a result that a checked schema names."""
    schema = _resolved(schema, root)
    for form in schema.get("anyOf", []):
        if _allows_null(form) == (value is None):
            return project(value, form, root)
    if isinstance(value, dict) and "properties" in schema:
        return {name: project(value[name], inner, root) for name, inner in schema["properties"].items()}
    if isinstance(value, list) and isinstance(schema.get("items"), dict):
        return [project(item, schema["items"], root) for item in value]
    return value


def _problems(schema: Any, ours: Schema, where: str, root: Schema, depth: int) -> Iterator[str]:
    """What keeps `ours` from fitting a schema."""
    if not isinstance(schema, dict) or depth > _DEEPEST:
        yield f"{where} is no schema that can be followed"
        return
    schema = _resolved(schema, root)
    if "anyOf" in schema:
        yield from _of_forms(schema["anyOf"], ours, where, root, depth)
        return
    unknown = sorted(set(schema) - _KNOWN)
    if unknown:
        yield f"{where} has {unknown[0]!r}, which the model cannot be held to"
    yield from _of_types(schema, ours, where)
    yield from _of_items(schema, ours, where, root, depth)
    properties, theirs = ours.get("properties", {}), schema.get("properties", {})
    for name, inner in theirs.items() if isinstance(theirs, dict) else ():
        if name not in properties:
            yield f"{where} has the property {name!r}, which no answer has"
        else:
            yield from _problems(inner, properties[name], f"{where}.{name}", root, depth + 1)
    required = schema.get("required", [])
    missing = [name for name in required if name not in theirs] if isinstance(required, list) else [required]
    if missing and properties:
        yield f"{where} requires {missing[0]!r} without describing it"


def _of_forms(forms: Any, ours: Schema, where: str, root: Schema, depth: int) -> Iterator[str]:
    """Of `anyOf`: one form beside null, as for what may be missing."""
    real = [form for form in forms if not _allows_null(form)] if isinstance(forms, list) else []
    if len(real) != 1 or len(forms) > 2:
        yield f"{where} has anyOf of other than one form and null"
        return
    nullable = len(forms) == 2
    plain = {**ours, "type": [kind for kind in _types(ours) if kind != "null"]} if nullable else ours
    yield from _problems(real[0], plain, where, root, depth + 1)


def _of_types(schema: Schema, ours: Schema, where: str) -> Iterator[str]:
    wanted = _types(schema)
    if "number" in wanted:
        wanted = [*wanted, "integer"]
    lacking = [kind for kind in _types(ours) if kind not in wanted]
    if wanted and lacking:
        yield f"{where} has type {schema['type']!r}, but may be {lacking[0]}"


def _of_items(schema: Schema, ours: Schema, where: str, root: Schema, depth: int) -> Iterator[str]:
    """Of lists: a box has four numbers; how many detections there are nobody knows."""
    bounds = {name: schema[name] for name in ("minItems", "maxItems") if name in schema}
    is_box = ours.get("items") == _NUMBER
    if bounds and not (is_box and bounds.get("minItems", 0) in range(5) and bounds.get("maxItems", 4) == 4):
        yield f"{where} has bounds that an answer need not keep to"
    inner = [*schema.get("prefixItems", []), *([schema["items"]] if isinstance(schema.get("items"), dict) else [])]
    for item in inner:
        yield from _problems(item, ours.get("items", {}), f"{where}[]", root, depth + 1)


def _types(schema: Schema) -> list[str]:
    kinds = schema.get("type", [])
    return [kinds] if isinstance(kinds, str) else [str(kind) for kind in kinds] if isinstance(kinds, list) else []


def _resolved(schema: Schema, root: Schema) -> Schema:
    """Where a schema is only a reference, what it refers to."""
    reference = schema.get("$ref")
    if not isinstance(reference, str):
        return schema
    found: Any = root
    for part in reference.removeprefix("#/").split("/"):
        found = found.get(part) if isinstance(found, dict) else None
    return found if isinstance(found, dict) and "$ref" not in found else {"type": "unknown reference"}


def _allows_null(schema: Any) -> bool:
    return isinstance(schema, dict) and _types(schema) == ["null"]


def _described() -> str:
    return '{"detections": [{"label", "box", "score", "mask"}], "width", "height", "text"}, or a part of it'
