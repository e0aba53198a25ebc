"""A server on this machine, in a thread, and what to ask it."""

from __future__ import annotations

import base64
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from pictures import encoded

from mlx_paligemma import generate, load
from mlx_paligemma.demo.questions import ask
from mlx_paligemma.demo.scenes import draw_scene
from mlx_paligemma.serve.server import Server, listen
from mlx_paligemma.serve.settings import Settings

SHAPES = (Path(__file__).parent.parent / "mlx_paligemma" / "demo" / "shapes.png").read_bytes()
LONG = "segment circle ; heart ; star"  # about 70 tokens


@contextmanager
def serving(**settings):
    """`with serving(max_rows=2) as server:`; `server.address` is where it listens."""
    with listen("127.0.0.1", 0) as listener:
        server = Server(Settings(**settings), listener)
        server.address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=server.run)
        thread.start()
        until(lambda: server.is_ready)
        try:
            yield server
        finally:
            server.stop()
            thread.join(60)
            assert not thread.is_alive(), "the server did not end"


@contextmanager
def slowed(server, seconds: float = 0.03):
    """While it is entered, a step takes at least so long."""
    step = server.engine._step

    def slow() -> None:
        time.sleep(seconds)
        step()

    server.engine._step = slow
    try:
        yield
    finally:
        del server.engine._step


def until(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to this in time"
        time.sleep(0.01)


def data_uri(content: bytes = SHAPES, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def image_part(url: str | None = None) -> dict:
    return {"type": "image_url", "image_url": {"url": data_uri() if url is None else url}}


def message(prompt: str, *urls: str) -> dict:
    return {"role": "user", "content": [*(image_part(url) for url in urls or [data_uri()]), {"type": "text", "text": prompt}]}


def chat_body(prompt: str = "caption en", *urls: str, **more) -> dict:
    return {"model": "demo", "messages": [message(prompt, *urls)], **more}


def post(server, path: str, **request) -> httpx.Response:
    return httpx.post(server.address + path, timeout=60, **request)


def chat(server, *arguments, **more) -> httpx.Response:
    return post(server, "/v1/chat/completions", json=chat_body(*arguments, **more))


def refused(response: httpx.Response, status: int, *words: str) -> dict:
    """The error of a response, which has OpenAI's form, and neither path nor trace."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert all(word in error["message"] for word in words), error
    assert "Traceback" not in response.text and ".py" not in response.text and str(Path.cwd()) not in response.text
    return error


def single_runs(count: int, seed: int = 5, **options) -> list[tuple[str, str, str]]:
    """Pictures as data: addresses, prompts, and their answers one by one."""
    model, processor = load()
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        scene = draw_scene(rng)
        prompt = ask(scene, rng, lambda shape: [0] * 16).prefix
        answer = generate(model, processor, scene.image, prompt, **options).text
        found.append((data_uri(encoded(scene.image)), prompt, answer))
    return found


def metric(server, name: str) -> float:
    """One figure of /metrics."""
    lines = httpx.get(f"{server.address}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"mlx_paligemma_{name}"))
