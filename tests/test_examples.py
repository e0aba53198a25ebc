"""The clients of examples/ against a running server: they print what `generate` answers."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from serving import serving

import mlx_paligemma
from mlx_paligemma import generate, load

ROOT = Path(mlx_paligemma.__file__).parent.parent
EXAMPLES = ROOT / "examples"
PICTURE = ROOT / "mlx_paligemma" / "demo" / "shapes.png"
KEY = "a key"


@pytest.fixture(scope="module")
def address():
    with serving(api_key=KEY) as server:
        yield server.address


@pytest.fixture(scope="module")
def answer():
    """What `generate` answers about the picture."""
    model, processor = load()
    return lambda prompt, **options: generate(model, processor, PICTURE, prompt, **options)


def run(*words: str, key: str = KEY) -> subprocess.CompletedProcess:
    environment = os.environ | {"MLX_PALIGEMMA_API_KEY": key}
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)


def printed(*words: str) -> dict[str, list[str]]:
    """The lines of an example by their first word."""
    done = run(*words)
    assert done.returncode == 0, done.stderr
    lines: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, _, rest = line.partition(" ")
        lines.setdefault(name, []).append(rest.strip())
    return lines


def places(result) -> list[list[float]]:
    return [[round(edge, 1) for edge in item.box] for item in result.detections]


def read_places(lines: list[str], label: str) -> list[list[float]]:
    assert all(line.split()[0] == label for line in lines)
    return [[float(word) for word in line.split()[1:5]] for line in lines]


def test_the_openai_example_prints_what_generate_answers(address, answer):
    lines = printed(sys.executable, EXAMPLES / "ask_openai.py", PICTURE, "--find", "heart", "--address", address)
    caption, found = answer("caption en", token_logprobs=True), answer("detect heart")
    assert lines["caption"] == lines["streamed"] == [caption.text]
    tokens = re.findall(r"'([^']*)' ([\d.]+)%", lines["tokens"][0])
    assert "".join(text for text, _ in tokens) == caption.text
    assert len(tokens) == len(caption.token_ids) > 5
    shares = [float(share) / 100 for _, share in tokens]
    assert shares == pytest.approx([math.exp(value) for value in caption.token_logprobs], abs=6e-4)  # printed to 0.1 %
    assert read_places(lines["found"], "heart") == places(found) != []
    assert f"({found.detections[0].score:.1%})" in lines["found"][0]


def test_the_langchain_example_prints_what_generate_answers(address, answer):
    lines = printed(sys.executable, EXAMPLES / "ask_langchain.py", "--address", address)
    assert lines["caption"] == lines["streamed"] == [answer("caption en").text]
    prompts = ("answer en how many shapes are there?", "answer en what color is the circle?")
    assert lines["together"] == [answer(prompt).text for prompt in prompts]
    assert read_places(lines["found"], "circle") == places(answer("detect circle")) != []


def test_the_curl_example_prints_what_generate_answers(address, answer):
    done = run("sh", EXAMPLES / "ask.sh", PICTURE, "heart", address)
    assert done.returncode == 0, done.stderr
    heads = r"caption\n(.*?)\n\nstreamed, as server-sent events\n(.*)data: \[DONE\]\n\nfound\n(.*)\n"
    caption, events, found = re.fullmatch(heads, done.stdout, re.DOTALL).groups()
    assert json.loads(caption)["text"] == answer("caption en").text
    deltas = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"] for line in events.splitlines() if line]
    assert "".join(delta.get("content", "") for delta in deltas) == answer("caption en").text
    assert json.loads(found)["text"] == answer("detect heart").text


@pytest.mark.parametrize("name", ["ask_openai.py", "ask_langchain.py"])
def test_a_wrong_key_is_one_line(address, name):
    done = run(sys.executable, EXAMPLES / name, "--address", address, key="another")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "MLX_PALIGEMMA_API_KEY" in done.stderr


def test_curl_says_what_the_server_refused(address):
    done = run("sh", EXAMPLES / "ask.sh", PICTURE, "heart", address, key="another")
    assert done.returncode != 0 and "the API key is missing or wrong" in done.stdout
