"""The examples of docs/serve.md do what the page says, against a running server."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from serving import serving

import mlx_paligemma
from mlx_paligemma import generate, load

PACKAGE = Path(mlx_paligemma.__file__).parent
PAGE = (PACKAGE.parent / "docs" / "serve.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def answers():
    """What the page's blocks of a language print, line by line."""
    with serving() as server:

        def run(language: str, *program: str) -> list[str]:
            code = "\n".join(re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL))
            assert code.count("http://127.0.0.1:8080") > 0
            code = code.replace("http://127.0.0.1:8080", server.address)
            done = subprocess.run([*program, code], cwd=PACKAGE / "demo", capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, done.stderr
            return done.stdout.splitlines()

        yield run


def test_the_openai_examples_caption_stream_and_find(answers):
    model, processor = load()
    wanted = [generate(model, processor, PACKAGE / "demo" / "shapes.png", prompt) for prompt in ("caption en", "detect circle")]
    caption, rest = answers("python", sys.executable, "-c")
    assert caption == wanted[0].text
    assert rest.startswith(wanted[0].text)
    assert rest.count("Found(label='circle'") == len(wanted[1].detections) > 0


def test_the_curl_examples_find_segment_and_describe(answers):
    out = "".join(answers("sh", "bash", "-ec"))
    decoder, records, place = json.JSONDecoder(), [], 0
    while out[place : place + 1] == "{":
        record, place = decoder.raw_decode(out, place)
        records.append(record)
    found, segmented, caption, by_json, health, models = records
    assert {item["label"] for item in found["detections"]} == {"circle", "heart"}
    assert all(item["mask"]["counts"] for item in segmented["detections"])
    assert caption["text"]
    assert [item["label"] for item in by_json["detections"]] == ["circle"]
    assert (health["status"], models["data"][0]["id"]) == ("ok", "demo")
    assert "mlx_paligemma_requests_total" in out[place:]


def test_every_flag_of_the_page_is_one_of_the_command():
    code = "import typer; from mlx_paligemma.cli.serve import serve; typer.run(serve)"
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "200"},
    )
    flags = set(re.findall(r"`(--[a-z-]+)`", PAGE))
    assert len(flags) > 8
    assert all(flag in done.stdout for flag in flags)
