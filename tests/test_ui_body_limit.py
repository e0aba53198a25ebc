"""No body is read further than its limit, whatever its head says."""

import asyncio

import pytest
from gradio.route_utils import API_PREFIX

from mlx_paligemma.ui import body_limit
from mlx_paligemma.ui.body_limit import JSON_BYTES, UPLOAD, BodyLimit

MOST = JSON_BYTES * 2


class Reader:
    """An application that reads what it gets."""

    def __init__(self):
        self.size, self.ended_by = 0, None

    async def __call__(self, scope, receive, send):
        while True:
            message = await receive()
            self.size += len(message.get("body", b""))
            if not message.get("more_body"):
                self.ended_by = message["type"]
                return


def ask(path, chunks=(), kind="http", **headers):
    """The status that is answered with (None: it is left to the application), and the application."""
    waiting, sent, app = [*chunks], [], Reader()

    async def receive():
        return {"type": "http.request", "body": waiting.pop(0) if waiting else b"", "more_body": bool(waiting)}

    async def send(message):
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    asyncio.run(BodyLimit(app, MOST)({"type": kind, "path": path, "headers": raw}, receive, send))
    return (sent[0]["status"] if sent else None), app


def test_an_upload_has_a_limit_of_its_own():
    assert f"{API_PREFIX}/upload" == UPLOAD
    for path, most in (("/", JSON_BYTES), (UPLOAD, MOST)):
        status, app = ask(path, [b"x" * most], content_length=str(most))
        assert (status, app.size, app.ended_by) == (None, most, "http.request")
        status, app = ask(path, [b"x"], content_length=str(most + 1))
        assert (status, app.size, app.ended_by) == (413, 0, None)


@pytest.mark.parametrize("path", ["/upload", "/gradio_api/run/upload", "/gradio_api/api/upload", "/gradio_api/upload/"])
def test_other_addresses_that_end_like_it_have_the_small_one(path):
    assert ask(path, content_length=str(JSON_BYTES + 1))[0] == 413


@pytest.mark.parametrize("length", ["-1", "1e3", "", "\xb2", "9" * 5000, "0x10", " "])
def test_a_length_that_is_none_is_refused(length):
    assert ask("/", content_length=length)[0] == 413


@pytest.mark.parametrize("path", ["/", UPLOAD])
def test_a_body_that_grows_above_the_limit_ends_there(path):
    """As one without a length does, or with a wrong one."""
    most = MOST if path == UPLOAD else JSON_BYTES
    chunks = [b"x" * 2**20] * (most // 2**20 + 5)
    for headers in ({}, {"content_length": "10"}):
        _, app = ask(path, chunks, **headers)
        assert (app.size, app.ended_by) == (most, "http.disconnect")


def test_what_is_no_http_goes_through():
    assert ask("/", kind="lifespan")[1].ended_by == "http.request"


def test_a_body_that_stops_coming_ends_as_if_its_sender_had_gone(monkeypatch):
    monkeypatch.setattr(body_limit, "PATIENCE", 0.05)
    app, messages = Reader(), [{"type": "http.request", "body": b"x", "more_body": True}]

    async def receive():
        if messages:
            return messages.pop()
        await asyncio.sleep(10)

    asyncio.run(BodyLimit(app, MOST)({"type": "http", "path": UPLOAD, "headers": []}, receive, None))
    assert (app.size, app.ended_by) == (1, "http.disconnect")
