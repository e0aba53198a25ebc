"""The server keeps to its own OpenAPI document, whatever is sent: requests that schemathesis makes of it, right and wrong."""

from base64 import b64decode
from collections import Counter
from copy import deepcopy

import httpx
import pytest
import schemathesis
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import Status, from_schema
from schemathesis.generation import GenerationMode
from serving import serving

from mlx_paligemma.serve.app import PATHS
from mlx_paligemma.serve.openapi import CHAT, PICTURE

ASKING = {"/v1/chat/completions", "/v1/detect", "/v1/segment", "/v1/caption"}
FORM = "multipart/form-data"
TOKENS = 2  # of an answer


def make_answerable(context, case, kwargs):
    """No schema can say what is a picture, or that the last message is the user's; where a right request is meant, make it so."""
    if case.meta.generation.mode != GenerationMode.POSITIVE or not isinstance(case.body, dict):
        return
    case.freeze_metadata()  # a file's bytes are no string of the schema, but right
    body = deepcopy(case.body)
    if case.media_type == FORM:
        body["image"] = b64decode(PICTURE.partition(",")[2])
    elif "image" in body:
        body["image"] = PICTURE
    else:
        body["messages"] = deepcopy(CHAT["messages"])
    if body.get("max_tokens"):
        body["max_tokens"] = TOKENS
    case.body = body


def is_fault(case, check) -> bool:
    """In a form a list of one is the same as that one, so that a wrong request may be a right one there."""
    return check.status == Status.FAILURE and (case.media_type, check.name) != (FORM, "negative_data_rejection")


@pytest.fixture(scope="module")
def server():
    schemathesis.hook("before_call")(make_answerable)
    with serving(max_tokens=TOKENS) as made:
        yield made
    schemathesis.hooks.unregister(make_answerable)


def config(examples: int, is_repeatable: bool) -> SchemathesisConfig:
    """All phases and checks; of a chat the schema does not tell everything, so that right requests may be refused there."""
    accepts = {"positive_data_acceptance": {"expected-statuses": ["200", "404"]}}  # 404: another model
    may_refuse = {"positive_data_acceptance": {"enabled": False}}
    return SchemathesisConfig.from_dict({
        "generation": {"deterministic": is_repeatable, "max-examples": examples},
        "checks": accepts,
        "operations": [{"include-path": "/v1/chat/completions", "checks": may_refuse}],
        "continue-on-failure": True,
    })  # fmt: skip


def test_every_answer_is_as_described(server, request, count):
    is_full = request.config.getoption("--full")
    schema = schemathesis.openapi.from_url(f"{server.address}/openapi.json", config=config(count(2, 200), not is_full))
    seen, wrong = Counter(), []
    for event in from_schema(schema).execute():
        assert type(event).__name__ not in ("NonFatalError", "FatalError", "Interrupted"), event
        recorder = getattr(event, "recorder", None)
        if recorder is None:
            continue
        for name, interaction in recorder.interactions.items():
            case = recorder.cases[name].value
            seen[case.operation.path, case.meta.generation.mode, interaction.response.status_code] += 1
            failures = [check.failure_info for check in recorder.checks.get(name, []) if is_fault(case, check)]
            wrong += [f"{event.label}: {failure.failure}\n{failure.code_sample}" for failure in failures]
    assert not wrong, "\n\n".join(wrong)
    assert {path for path, _, _ in seen} == PATHS - {"/openapi.json", "/docs"}
    assert not [status for _, _, status in seen if status >= 500]
    for path in ASKING:
        assert seen[path, GenerationMode.POSITIVE, 200] > 10
        assert seen[path, GenerationMode.NEGATIVE, 400] > 10
        assert seen[path, GenerationMode.NEGATIVE, 415]
        assert seen[path, GenerationMode.NEGATIVE, 405]
    print(
        f"\n{seen.total()} requests", *(f"{path} {mode.value} {status}: {n}" for (path, mode, status), n in seen.items()), sep="\n"
    )


def test_the_examples_of_the_document_are_answered(server):
    document = httpx.get(f"{server.address}/openapi.json").json()
    for path in ASKING:
        example = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
        assert httpx.post(server.address + path, json=example, timeout=60).status_code == 200


def test_the_document_asks_for_the_key_where_the_server_does():
    with serving(api_key="secret") as keyed:
        document = httpx.get(f"{keyed.address}/openapi.json").json()
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                answer = httpx.request(method, keyed.address + path)
                assert (answer.status_code == 401) == ("security" in operation) == ("401" in operation["responses"])
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
