"""OpenAI's chat form with the real `openai` client: whole, streamed, log-probabilities, stops, choices, JSON; and its errors."""

import json
import threading
import time
from collections.abc import Iterator

import httpx
import openai
import pytest
from pydantic import BaseModel
from serving import LONG, SHAPES, chat, chat_body, data_uri, image_part, message, refused, serving, single_runs, slowed, until

from mlx_paligemma import generate, load
from mlx_paligemma.common.token_pieces import TokenPieces


@pytest.fixture(scope="module")
def server():
    with serving() as made:
        yield made


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """What one run alone answers: (prompt, **options) -> GenerationResult."""
    path = tmp_path_factory.mktemp("picture") / "shapes.png"
    path.write_bytes(SHAPES)
    model, processor = load()
    return lambda prompt, **options: generate(model, processor, path, prompt, **options)


def ask(client, prompt="caption en", **more):
    return client.chat.completions.create(model="demo", messages=[message(prompt)], **more)


@pytest.mark.parametrize("prompt", ["caption en", "detect circle", "segment square ; circle"])
def test_an_answer_is_that_of_a_single_run(client, single, prompt):
    wanted, found = single(prompt, max_tokens=256), ask(client, prompt)
    assert found.choices[0].message.content == wanted.text
    assert found.choices[0].finish_reason == wanted.finish_reason == "stop"
    assert found.usage.prompt_tokens == wanted.stats.prompt_tokens
    assert found.usage.completion_tokens == len(wanted.token_ids)
    assert (found.object, found.model) == ("chat.completion", "demo")


def test_a_streamed_answer_is_the_same_in_pieces_and_ends_with_its_cost(client, single):
    wanted = single("caption en", max_tokens=256)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == wanted.text
    assert len(pieces) > 3
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == len(wanted.token_ids)
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_is_server_sent_events_with_done_at_its_end(server):
    response = chat(server, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.startswith("data: {") and response.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_those_of_a_single_run(client, single, stream):
    wanted = single("detect circle", token_logprobs=True)
    found = ask(client, "detect circle", logprobs=True, stream=stream)
    choices = [chunk.choices[0] for chunk in found] if stream else found.choices
    entries = [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content]
    assert [entry.logprob for entry in entries] == pytest.approx(wanted.token_logprobs, abs=1e-4)
    assert "".join(entry.token for entry in entries) == wanted.text
    assert all(entry.top_logprobs == [] for entry in entries)


def told_entries(answer, stream: bool, choices: int = 1) -> list[list]:
    """The entries of log-probabilities of each choice of an answer, whole or streamed."""
    found = [choice for chunk in answer for choice in chunk.choices] if stream else answer.choices
    told = [[each for choice in found if choice.index == index and choice.logprobs for each in choice.logprobs.content]
            for index in range(choices)]  # fmt: skip
    assert all(bytes(each.bytes).decode() == each.token for entries in told for each in entries)
    return told


def is_told_of(entries, wanted) -> None:
    """Whether entries are of the first tokens of a single run, to the rounding of a batch, in which the last may be another."""
    pieces = TokenPieces(load()[1].tokenizer)
    assert entries and [entry.token for entry in entries] == [pieces[token].text for token in wanted.token_ids][: len(entries)]
    for entry, likeliest in zip(entries, wanted.top_logprobs, strict=False):
        told = [each.logprob for each in entry.top_logprobs]
        assert told == sorted(told, reverse=True)
        assert told == pytest.approx([logprob for _, logprob in likeliest], abs=1e-4)
        found = {each.token: each for each in entry.top_logprobs}
        same = [(piece, logprob) for token, logprob in likeliest if (piece := pieces[token]).text in found]
        assert len(same) >= len(likeliest) - 1
        for piece, logprob in same:
            assert found[piece.text].logprob == pytest.approx(logprob, abs=1e-4)
            assert found[piece.text].bytes == (None if piece.data is None else [*piece.data])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["caption en", "detect circle"])
def test_the_likeliest_tokens_are_those_of_a_single_run(client, single, prompt, stream):
    wanted = single(prompt, top_logprobs=5)
    (entries,) = told_entries(ask(client, prompt, logprobs=True, top_logprobs=5, stream=stream), stream)
    assert len(entries) == len(wanted.token_ids)
    is_told_of(entries, wanted)
    if prompt == "caption en":
        assert all(entry.top_logprobs[0].token == entry.token for entry in entries)


@pytest.mark.parametrize("stream", [False, True])
def test_each_choice_tells_of_its_own_tokens(client, single, stream):
    options = {"temperature": 1.0, "max_tokens": 8, "top_logprobs": 5}
    answer = ask(client, n=2, seed=40, logprobs=True, stream=stream, **options)
    for index, entries in enumerate(told_entries(answer, stream, choices=2)):
        is_told_of(entries, single("caption en", seed=40 + index, **options))


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_cuts_off_the_log_probabilities_with_the_text(client, single, stream):
    wanted = single("caption en", top_logprobs=5)
    tokens = [TokenPieces(load()[1].tokenizer)[token].text for token in wanted.token_ids]
    stop = "".join(tokens[3:6])
    assert wanted.text.index(stop) == len("".join(tokens[:3]))
    (entries,) = told_entries(ask(client, logprobs=True, top_logprobs=5, stop=stop, stream=stream), stream)
    is_told_of(entries, wanted)
    assert [entry.token for entry in entries] == tokens[:3]
    (entries,) = told_entries(ask(client, logprobs=True, stop=stop[1:], stream=stream), stream)
    assert [entry.token for entry in entries] == tokens[:4]  # a token of which a part is told


@pytest.mark.parametrize("stream", [False, True])
def test_text_that_was_held_back_comes_with_its_log_probabilities(client, single, stream):
    wanted = single("caption en", top_logprobs=5)
    last = TokenPieces(load()[1].tokenizer)[wanted.token_ids[-1]].text
    begun = f"{last} never there"  # the last token may begin it until the answer ends
    (entries,) = told_entries(ask(client, logprobs=True, top_logprobs=5, stop=begun, stream=stream), stream)
    assert len(entries) == len(wanted.token_ids)
    is_told_of(entries, wanted)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_before_a_stop_string(client, single, stream):
    whole = single("caption en").text
    stop = whole[8:12]
    found = ask(client, stop=[stop, "never there"], stream=stream)
    choices = [chunk.choices[0] for chunk in found] if stream else found.choices
    text = "".join(choice.delta.content or "" for choice in choices) if stream else choices[0].message.content
    assert text == whole[: whole.index(stop)]
    assert choices[-1].finish_reason == "stop"


def test_choices_draw_with_seeds_one_after_the_other(client, single):
    options = {"temperature": 2.0, "max_tokens": 12}
    found = ask(client, n=3, seed=40, **options)
    assert [choice.message.content for choice in found.choices] == [
        single("caption en", seed=40 + i, **options).text for i in range(3)
    ]
    assert len({choice.message.content for choice in found.choices}) > 1
    streamed: dict[int, str] = {0: "", 1: "", 2: ""}
    for chunk in ask(client, n=3, seed=40, stream=True, **options):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert [*streamed.values()] == [choice.message.content for choice in found.choices]


def test_an_answer_that_is_cut_says_so(client):
    assert ask(client, max_tokens=2).choices[0].finish_reason == "length"
    assert ask(client, max_completion_tokens=2).usage.completion_tokens == 2


def test_detections_come_as_json_of_the_callers_own_class(client, single):
    class Found(BaseModel):
        label: str
        box: list[float]
        score: float | None

    class Boxes(BaseModel):
        detections: list[Found]
        width: int

    messages = [message("detect circle")]
    parsed = client.chat.completions.parse(model="demo", messages=messages, response_format=Boxes).choices[0].message.parsed
    wanted = single("detect circle").detections
    assert [(item.label, tuple(item.box)) for item in parsed.detections] == [(item.label, item.box) for item in wanted]
    assert wanted and parsed.width == wanted.width


@pytest.mark.parametrize("stream", [False, True])
def test_without_a_schema_json_has_everything_that_is_known(client, stream):
    form = {"type": "json_schema", "json_schema": {"name": "detections"}}
    found = ask(client, "segment circle", response_format=form, stream=stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in found) if stream else found.choices[0].message.content
    record = json.loads(text)
    assert set(record) == {"detections", "width", "height", "text"}
    assert set(record["detections"][0]["mask"]) == {"size", "counts"}


def test_pictures_of_earlier_messages_belong_to_the_question(server):
    messages = [{"role": "user", "content": [image_part()]}, {"role": "user", "content": "caption en"}]
    response = httpx.post(f"{server.address}/v1/chat/completions", json={"messages": messages}, timeout=60)
    assert response.json()["choices"][0]["message"]["content"] == chat(server).json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("messages", "word"),
    [
        ([{"role": "system", "content": "Be brief."}, message("caption en")], "no chat history"),
        ([message("caption en"), {"role": "assistant", "content": "a cat"}, message("and now?")], "no chat history"),
        ([message("caption en"), {"role": "assistant", "content": "a cat"}], "the last message"),
        ([{"role": "user", "content": [image_part()]}], "with a text"),
        ([{"role": "user", "content": "caption en"}], "no picture"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages.0.content"),
        ([{"role": "wizard", "content": "caption en"}], "messages.0.role"),
        ([], "messages"),
    ],
)  # fmt: skip
def test_messages_that_make_no_prompt_are_refused(server, messages, word):
    response = httpx.post(f"{server.address}/v1/chat/completions", json={"model": "demo", "messages": messages})
    refused(response, 400, word)


@pytest.mark.parametrize(
    "more",
    [
        {"max_tokens": 0}, {"max_tokens": -5}, {"max_tokens": 10**30}, {"max_tokens": 500_000},
        {"max_tokens": "many"},
        {"temperature": -1}, {"temperature": 1e308}, {"top_p": 0}, {"top_p": 1.1}, {"n": 0}, {"n": 1000}, {"seed": -1},
        {"stop": ["a"] * 5}, {"stop": ""}, {"frequency_penalty": 1},
        {"top_logprobs": 5}, {"top_logprobs": 21, "logprobs": True}, {"top_logprobs": -1, "logprobs": True},
        {"top_logprobs": 1.5, "logprobs": True},
        {"stream_options": {"include_usage": True}}, {"tools": []}, {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema"}},
    ],
    ids=str,
)  # fmt: skip
def test_parameters_that_cannot_be_followed_are_refused_by_name(server, more):
    error = refused(chat(server, **more), 400)
    assert error["type"] == "invalid_request_error"
    name = next(iter(more))
    assert name in (error["param"] or "") or name in error["message"]


def test_the_client_raises_its_own_errors(client):
    with pytest.raises(openai.NotFoundError, match="one model"):
        client.chat.completions.create(model="gpt-4o", messages=[message("caption en")])
    with pytest.raises(openai.BadRequestError, match="picture 1 is not a picture"):
        client.chat.completions.create(model="demo", messages=[message("caption en", data_uri(b"no picture"))])


def test_the_models_list_has_one(client):
    assert [model.id for model in client.models.list()] == ["demo"]


def test_many_clients_at_once_get_the_answers_of_single_runs(server):
    wanted = single_runs(16, max_tokens=30)
    found: list[str | None] = [None] * 16

    def run(index: int) -> None:
        url, prompt, _ = wanted[index]
        found[index] = chat(server, prompt, url, max_tokens=30).json()["choices"][0]["message"]["content"]

    threads = [threading.Thread(target=run, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [answer for _, _, answer in wanted]


def streamed(server, body: dict) -> Iterator[float]:
    """When each piece of an answer came."""
    with httpx.stream("POST", f"{server.address}/v1/chat/completions", json=body | {"stream": True}, timeout=60) as stream:
        for line in stream.iter_lines():
            if '"content"' in line and '"role"' not in line:
                yield time.monotonic()


def test_a_late_request_gets_its_first_token_before_an_earlier_one_ends(server):
    first, times = threading.Event(), []

    def early() -> None:
        for when in streamed(server, chat_body(LONG)):
            times.append(when)
            first.set()

    with slowed(server):
        thread = threading.Thread(target=early)
        thread.start()
        assert first.wait(20)
        late = next(streamed(server, chat_body("caption en")))
        thread.join()
    assert times[0] < late < times[-1]


def test_leaving_in_the_middle_frees_the_place(server):
    with slowed(server):
        pieces = streamed(server, chat_body(LONG))
        next(pieces)
        assert server.engine.decoding == 1
        pieces.close()
        until(lambda: server.engine.decoding == 0, seconds=1)


def test_leaving_before_the_answer_frees_all_places_and_those_in_the_queue(server, caplog):
    with slowed(server):
        clients = [threading.Thread(target=impatient, args=(server,)) for _ in range(2)]
        for client in clients:
            client.start()
        until(lambda: server.engine.decoding > 1 and server.answers.waiting > 1)
        for client in clients:
            client.join()
        until(lambda: server.engine.decoding == server.answers.waiting == 0, seconds=2)
    assert not [record for record in caplog.records if record.levelname != "INFO"]


def impatient(server) -> None:
    body = chat_body(LONG, n=8)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.address}/v1/chat/completions", json=body, timeout=2.5)
