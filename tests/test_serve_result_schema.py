"""Which JSON schemas the detection result fits, and the part of it that they name."""

import pytest
from pydantic import BaseModel

from mlx_paligemma.serve.api_errors import ApiError
from mlx_paligemma.serve.result_schema import RESULT, check_schema, project

BOX = [1.0, 2.0, 3.0, 4.0]
MASK = {"size": [5, 6], "counts": "abc"}
FOUND = {"label": "cat", "box": BOX, "score": 0.5, "mask": MASK}
RECORD = {"detections": [FOUND, FOUND | {"score": None, "mask": None}], "width": 6, "height": 5, "text": "...", "notes": []}


class Mask(BaseModel):
    size: list[int]
    counts: str


class Cat(BaseModel):
    label: str
    box: list[float]
    mask: Mask | None


class Cats(BaseModel):
    detections: list[Cat]
    height: int


def of(**properties) -> dict:
    return {"type": "object", "properties": properties}


def in_detections(**properties) -> dict:
    return of(detections={"type": "array", "items": of(**properties)})


def test_a_pydantic_class_gets_its_part():
    schema = Cats.model_json_schema()
    check_schema(schema)
    cats = Cats.model_validate(project(RECORD, schema, schema))
    assert cats.model_dump() == {
        "detections": [{"label": "cat", "box": BOX, "mask": MASK}, {"label": "cat", "box": BOX, "mask": None}],
        "height": 5,
    }


def test_our_own_schema_fits_and_keeps_everything_but_notes():
    check_schema(RESULT)
    assert project(RECORD, RESULT, RESULT) == {name: value for name, value in RECORD.items() if name != "notes"}


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        (of(cats={"type": "array"}), "'cats'"),
        (of(width={"type": "string"}), "schema.width has type"),
        (in_detections(label={"type": "string", "enum": ["cat"]}), "'enum'"),
        (in_detections(label={"type": "string", "pattern": "c.t"}), "'pattern'"),
        (in_detections(score={"type": "number"}), "may be null"),
        (in_detections(box={"type": "array", "items": {"type": "integer"}}), "may be number"),
        (in_detections(box={"type": "array", "maxItems": 2}), "bounds"),
        (of(detections={"type": "array", "minItems": 1}), "bounds"),
        (of(width={"$ref": "#/$defs/none"}), "unknown reference"),
        (of(width={"anyOf": [{"type": "integer"}, {"type": "string"}]}), "anyOf"),
        (of(width=[1]), "no schema"),
        ({"type": "object", "required": ["name"]}, "'name'"),
        ({"type": "array"}, "may be object"),
    ],
)
def test_what_an_answer_need_not_keep_to_is_refused(schema, word):
    with pytest.raises(ApiError) as caught:
        check_schema(schema)
    assert word in caught.value.message
    assert (caught.value.status, caught.value.param) == (400, "response_format")


def test_a_schema_that_refers_to_itself_ends():
    schema = {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}}, "$ref": "#/$defs/a"}
    with pytest.raises(ApiError):
        check_schema(schema)


def test_a_box_may_be_told_to_have_four_numbers():
    check_schema(in_detections(box={"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}))
    check_schema(in_detections(box={"type": "array", "prefixItems": [{"type": "number"}] * 4}))
