"""Who may use the page: itself, under a name that is its own."""

import asyncio

import pytest

from mlx_paligemma.ui.origin_check import OriginCheck


def is_let_in(any_name=False, **headers) -> bool:
    reached, sent = [], []

    async def app(scope, receive, send):
        reached.append(scope)

    async def send(message):
        sent.append(message)

    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(OriginCheck(app, any_name)({"type": "http", "headers": raw}, None, send))
    assert bool(reached) != bool(sent)
    assert not sent or sent[0]["status"] == 403
    return bool(reached)


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost:7860", "LOCALHOST", "[::1]:7860", "192.168.1.7:80"])
def test_the_page_itself_is_let_in(host):
    assert is_let_in(host=host)
    assert is_let_in(host=host, origin=f"http://{host}")


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:3000", "", "http://", "localhost:7860.evil.example"]
)
def test_other_pages_are_not(origin):
    assert not is_let_in(host="localhost:7860", origin=origin)
    assert not is_let_in(host="localhost:7860", origin=origin, any_name=True)


def test_names_that_others_have_pointed_here_are_refused_where_only_this_machine_comes():
    for host in ("evil.example", "evil.example:7860", "localhost.evil.example", "127.0.0.1.evil.example", ""):
        assert not is_let_in(host=host, origin=f"http://{host}")
    assert is_let_in(any_name=True, host="my-mac.local:7860", origin="http://my-mac.local:7860")


def test_a_proxy_tells_the_name_of_the_page():
    names = {"host": "127.0.0.1:7860", "x_forwarded_host": "abc.gradio.live"}
    assert is_let_in(any_name=True, origin="https://abc.gradio.live", **names)
    assert not is_let_in(any_name=True, origin="https://evil.example", **names)
    assert is_let_in(origin="https://abc.gradio.live", **names)
