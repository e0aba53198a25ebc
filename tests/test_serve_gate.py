"""Hostile and clumsy requests: each gets its 4xx in OpenAI's form, costs little, and the server goes on serving."""

import gzip
import json
import socket
import struct
import threading
import time
import zlib

import httpx
import pytest
from serving import LONG, SHAPES, chat, chat_body, data_uri, metric, post, refused, serving, slowed, until

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server():
    with serving(max_rows=2, max_waiting=2, max_body_bytes=300_000, max_image_pixels=1_000_000, idle_timeout=1.0) as made:
        yield made
        assert chat(made).status_code == 200


@pytest.fixture(autouse=True)
def goes_on_serving(server):
    yield
    assert httpx.get(f"{server.address}/v1/models").status_code == 200


def raw(server, *parts: bytes, wait: float = 10) -> bytes:
    """Everything that the server sends after these bytes."""
    with connected(server) as sender:
        for part in parts:
            sender.sendall(part)
        sender.settimeout(wait)
        received = b""
        try:
            while part := sender.recv(65536):
                received += part
        except ConnectionResetError:
            pass
        return received


def connected(server) -> socket.socket:
    host, port = server.address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)))


def head(*more: str, method: str = "POST", path: str = CHAT) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *more]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


def huge_png() -> bytes:
    """A picture of 40000 x 40000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(10000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("picture", "word"),
    [
        (b"", "is empty"), (b"GIF89a", "is not a picture"), (SHAPES[:300], "damaged or cut short"), (huge_png(), "than 1000000"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture"), (b"\x00" * 5000, "is not a picture"),
    ],
    ids=["empty", "not an image", "truncated", "pixels", "postscript", "zeros"],
)  # fmt: skip
def test_what_is_no_picture_is_refused(server, picture, word):
    refused(chat(server, "caption en", data_uri(picture)), 400, "picture 1", word)


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,@@@", "data:image/png,abc", "data:text/html;base64,AAAA", "/etc/passwd", "file:///etc/passwd", "ftp://a/b.png",
        "http://127.0.0.1/a.png", "https://example.com/a.png", "", "../../a.png", "data:", "javascript:alert(1)",
    ],
)  # fmt: skip
def test_addresses_that_are_no_data_are_refused_and_nothing_is_fetched(server, url):
    assert refused(chat(server, "caption en", url), 400)["param"] == "messages"


def test_a_thousand_images_are_refused(server):
    refused(chat(server, "caption en", *["data:image/png;base64,AAAA"] * 1000), 400, "1000 pictures", "at most 8")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "EOF"), (b"{", "EOF"), (b"[]", "object"), (b"null", "object"), (b'{"messages": "\xff\xfe"}', "JSON"),
        (b'{"messages": "\\ud800"}', "JSON"), (b"[" * 9000, "JSON"), (b'{"a":' * 9000, "JSON"), (b"[" * 100_000, "10000 lists"),
        (b"[" + b"[]," * 90_000, "10000 lists"), (b'{"n": 1' + b"0" * 100_000 + b"}", ""), (b'{"n": NaN}', ""),
        (json.dumps(chat_body("x" * 20_001, "data:image/png;base64,")).encode(), "at most 20000"),
        (json.dumps(chat_body("caption \x00 en", "data:image/png;base64,")).encode(), "picture 1 is empty"),
    ],
    ids=range(14),
)  # fmt: skip
def test_bodies_that_are_no_request_are_refused(server, content, word):
    started = time.perf_counter()
    refused(post(server, CHAT, content=content, headers={"content-type": "application/json"}), 400, word)
    assert time.perf_counter() - started < 2


def test_the_wrong_content_type_is_refused(server):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/xml", ""):
        refused(post(server, CHAT, content=b"{}", headers={"content-type": kind}), 415, "application/json")


def test_a_compressed_body_is_refused_before_it_is_read(server):
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    refused(post(server, CHAT, content=gzip.compress(json.dumps(chat_body()).encode()), headers=headers), 415, "compressed")


def test_a_body_over_the_limit_is_refused_by_its_length_alone(server):
    answer = raw(server, head("Content-Length: 10000000000"))
    assert answer.startswith(b"HTTP/1.1 413") and b'"code":"too_large"' in answer


def test_a_body_without_a_length_is_read_up_to_the_limit_and_no_further(server):
    sent = 0
    with connected(server) as sender:
        sender.sendall(head("Transfer-Encoding: chunked"))
        try:
            while sent < 200_000_000:
                sender.sendall(b"10000\r\n" + b"a" * 65536 + b"\r\n")
                sent += 65536
        except OSError:
            pass
    assert sent < 20_000_000  # what the network's buffers hold


def test_a_client_that_sends_no_body_is_not_waited_for(server):
    started = time.monotonic()
    answer = raw(server, head("Content-Length: 1000"), b"{")
    assert answer.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - started < 4


def test_a_client_that_sends_no_head_is_not_waited_for(server):
    started = time.monotonic()
    assert raw(server, b"POST / HT") == b""
    assert time.monotonic() - started < 4


def test_what_is_not_http_is_refused(server):
    assert raw(server, b"\x16\x03\x01\x02\x00\x01\r\n\r\n").startswith(b"HTTP/1.1 400")


def test_a_head_without_end_is_refused(server):
    assert raw(server, head(f"X: {'a' * 200_000}")).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("length", ["-1", "1e3", "abc"])
def test_a_length_that_is_none_is_refused(server, length):
    assert raw(server, head(f"Content-Length: {length}")).startswith((b"HTTP/1.1 400", b"HTTP/1.1 413"))


def test_json_of_other_types_than_the_schema_says_is_refused(server):
    for wrong in ({"stream": "true"}, {"temperature": "0.5"}, {"temperature": False}, {"max_tokens": "3"}, {"n": True}):
        refused(chat(server, **wrong), 400, *wrong)


def test_whole_numbers_may_be_written_with_a_point(server):
    assert chat(server, max_tokens=3.0, seed=7.0).json()["usage"]["completion_tokens"] == 3
    refused(chat(server, max_tokens=3.5), 400, "max_tokens")


def test_unknown_places_and_methods_have_the_form_too(server):
    assert refused(httpx.get(f"{server.address}/v1/nothing"), 404)["code"] == "not_found"
    assert refused(httpx.get(server.address + CHAT), 405)["code"] == "method_not_allowed"
    assert refused(post(server, "/v1/models"), 405)["type"] == "invalid_request_error"


def test_more_requests_than_the_queue_holds_are_told_to_come_later(server):
    clients = [threading.Thread(target=lambda: chat(server, LONG)) for _ in range(4)]
    with slowed(server):
        for client in clients:
            client.start()
        until(lambda: metric(server, "decoding") + metric(server, "waiting") == 4)
        answer = chat(server)
    assert refused(answer, 429)["code"] == "server_busy"
    assert answer.headers["retry-after"] == "1"
    for client in clients:
        client.join()


def test_pages_of_other_origins_may_not_ask(server):
    def asked(origin: str, host: str | None = None) -> httpx.Response:
        headers = {"origin": origin} | ({} if host is None else {"host": host})
        return post(server, "/v1/caption", files={"image": ("a.png", SHAPES)}, headers=headers)

    assert refused(asked("https://evil.example"), 403)["code"] == "origin_refused"
    assert refused(asked("null"), 403)
    assert refused(asked("http://evil.example:8080", host="evil.example:8080"), 403)  # its name now leads here
    assert asked(server.address).status_code == 200  # the server's own page of documentation
    assert "access-control-allow-origin" not in asked(server.address).headers


def test_a_request_keeps_a_harmless_id_and_gets_one_where_its_own_is_none(server):
    assert httpx.get(f"{server.address}/health", headers={"x-request-id": "mine-7"}).headers["x-request-id"] == "mine-7"
    assert httpx.get(f"{server.address}/health", headers={"x-request-id": "a b"}).headers["x-request-id"].startswith("req-")


def test_without_the_key_nothing_is_told():
    with serving(api_key="secret", cors_origins=("https://a.example",)) as keyed:
        for key in (None, "wrong", "secre", "secrets", "\u00fc", ""):
            headers = {} if key is None else {"authorization": f"Bearer {key}".strip().encode()}
            for path in ("/v1/models", "/metrics", CHAT, "/nothing"):
                assert refused(httpx.get(keyed.address + path, headers=headers), 401)["code"] == "invalid_api_key"
            refused(post(keyed, CHAT, json=chat_body(), headers=headers), 401, "API key")
        assert httpx.get(f"{keyed.address}/health").status_code == 200
        right = {"authorization": "Bearer secret", "origin": "https://a.example"}
        answer = post(keyed, CHAT, json=chat_body(), headers=right)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://a.example")
        refused(post(keyed, CHAT, json=chat_body(), headers=right | {"origin": "https://b.example"}), 403)
