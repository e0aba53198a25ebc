"""Boxes, masks and captions for programs: JSON and forms, typed answers equal to single runs."""

import httpx
import pytest
from serving import SHAPES, data_uri, post, refused, serving

from mlx_paligemma import generate, load
from mlx_paligemma.common.masks import encode_rle


@pytest.fixture(scope="module")
def server():
    with serving() as made:
        yield made


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "shapes.png"
    path.write_bytes(SHAPES)
    model, processor = load()
    return lambda prompt: generate(model, processor, path, prompt, max_tokens=256)


def form(server, task, fields, content=SHAPES):
    return post(server, f"/v1/{task}", files={"image": ("a.png", content, "image/png")}, data=fields)


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_json_and_form_give_the_objects_of_a_single_run(server, single, task):
    wanted = single(f"{task} circle ; heart")
    by_json = post(server, f"/v1/{task}", json={"image": data_uri(), "labels": ["circle", "heart"]}).json()
    assert by_json == form(server, task, {"labels": ["circle", "heart"]}).json()
    assert by_json == form(server, task, {"labels": "circle ; heart", "max_tokens": "256"}).json()
    assert [(item["label"], tuple(item["box"])) for item in by_json["detections"]] == [
        (item.label, item.box) for item in wanted.detections
    ]
    assert [item["score"] for item in by_json["detections"]] == pytest.approx([item.score for item in wanted.detections], abs=1e-4)
    masks = [None if item.mask is None else encode_rle(item.mask) for item in wanted.detections]
    assert masks == [item["mask"] for item in by_json["detections"]]
    assert (by_json["width"], by_json["height"]) == (wanted.detections.width, wanted.detections.height)
    assert (by_json["prompt"], by_json["text"]) == (f"{task} circle ; heart", wanted.text)
    assert len(masks) > 1 and all(masks) == (task == "segment")


def test_a_caption_is_that_of_a_single_run(server, single):
    found = form(server, "caption", {}).json()
    assert found["text"] == single("caption en").text
    assert found["finish_reason"] == "stop"
    assert found["usage"]["completion_tokens"] == len(single("caption en").token_ids)


def test_objects_below_a_score_are_left_out(server):
    assert form(server, "detect", {"labels": "circle", "min_score": "1"}).json()["detections"] == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "labels"), ({"labels": ""}, "labels.0"), ({"labels": "a;;b"}, "labels.1"), ({"labels": "<loc0001>"}, "labels"),
        ({"labels": ["x"] * 33}, "labels"), ({"labels": "x" * 201}, "labels.0"),
        ({"labels": "cat", "max_tokens": "0"}, "max_tokens"),
        ({"labels": "cat", "max_tokens": ["1", "2"]}, "form"), ({"labels": "cat", "sharpness": "1"}, "sharpness"),
    ],
    ids=str,
)  # fmt: skip
def test_fields_that_cannot_be_followed_are_refused_by_name(server, fields, param):
    assert refused(form(server, "detect", fields), 400)["param"] == param


def test_forms_without_a_good_picture_are_refused(server):
    refused(form(server, "detect", {"labels": "cat"}, b""), 400, "picture 1 is empty")
    refused(form(server, "detect", {"labels": "cat"}, b"not a picture"), 400, "picture 1 is not a picture")
    refused(form(server, "detect", {"labels": "cat"}, SHAPES[: len(SHAPES) // 2]), 400, "picture 1 is damaged or cut short")
    refused(post(server, "/v1/detect", files={"labels": (None, "cat")}), 400, "no file")
    several = [("image", ("a.png", SHAPES)), ("image", ("b.png", SHAPES))]
    refused(post(server, "/v1/detect", files=several, data={"labels": "cat"}), 400, "Too many files")


def test_a_form_that_is_none_is_refused(server):
    headers = {"content-type": "multipart/form-data"}
    refused(post(server, "/v1/caption", content=b"image=1", headers=headers), 400, "boundary")
    headers = {"content-type": "multipart/form-data; boundary=x"}
    refused(post(server, "/v1/caption", content=b"--x\r\nContent-Disp", headers=headers), 400)


def test_languages_are_codes(server):
    body = {"image": data_uri(), "language": "en; detect cat"}
    assert refused(post(server, "/v1/caption", json=body), 400)["param"] == "language"


def test_another_model_is_not_there(server):
    body = {"image": data_uri(), "labels": ["cat"], "model": "other"}
    assert refused(post(server, "/v1/detect", json=body), 404)["code"] == "model_not_found"


def test_the_openapi_document_describes_both_forms(server):
    document = httpx.get(f"{server.address}/openapi.json").json()
    content = document["paths"]["/v1/detect"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data"}
    schemas = document["components"]["schemas"]
    assert schemas["LocateRequestForm"]["properties"]["image"]["format"] == "binary"
    assert "messages" in schemas["ChatRequest"]["properties"]
    assert all(reference.split("/")[-1] in schemas for reference in references(document))


def references(node) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*map(references, node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()
