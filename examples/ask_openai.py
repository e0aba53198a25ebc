"""Ask a running server through OpenAI's client: whole, streamed, with probabilities, and as objects of a class.

pip install openai
python ask_openai.py photo.jpg --find cat
"""

from __future__ import annotations

import argparse
import base64
import math
import mimetypes
import os
from pathlib import Path
from typing import Any

from openai import OpenAI, OpenAIError
from pydantic import BaseModel

PICTURE = Path(__file__).parent.parent / "mlx_paligemma" / "demo" / "shapes.png"


class Found(BaseModel):
    """One object. Its fields are a part of those that the server has; it sends no others."""

    label: str
    box: list[float]  # x0, y0, x1, y1 in pixels of the picture
    score: float | None  # 0 to 1


class Result(BaseModel):
    """Everything that was found."""

    detections: list[Found]


def main() -> None:
    """Ask four times."""
    wanted = arguments()
    client = OpenAI(base_url=f"{wanted.address.removesuffix('/v1')}/v1", api_key=os.environ.get("MLX_PALIGEMMA_API_KEY", "none"))
    model = wanted.model or client.models.list().data[0].id
    print("caption  ", caption(client, model, wanted.picture))
    print("streamed  ", end="")
    stream(client, model, wanted.picture)
    print("tokens   ", " ".join(f"{text!r} {share:.1%}" for text, share in tokens(client, model, wanted.picture)))
    for item in find(client, model, wanted.picture, wanted.find).detections:
        print("found    ", item.label, *(f"{edge:.1f}" for edge in item.box), "" if item.score is None else f"({item.score:.1%})")


def caption(client: OpenAI, model: str, picture: Path) -> str:
    """The whole answer at once."""
    answer = client.chat.completions.create(model=model, messages=message(picture, "caption en"))
    return answer.choices[0].message.content or ""


def stream(client: OpenAI, model: str, picture: Path) -> None:
    """Print the answer while it is made."""
    for chunk in client.chat.completions.create(model=model, messages=message(picture, "caption en"), stream=True):
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


def tokens(client: OpenAI, model: str, picture: Path) -> list[tuple[str, float]]:
    """Each token of an answer and how probable the model found it, 0 to 1."""
    answer = client.chat.completions.create(model=model, messages=message(picture, "caption en"), logprobs=True)
    given = answer.choices[0].logprobs
    return [(item.token, math.exp(item.logprob)) for item in (given and given.content) or []]


def find(client: OpenAI, model: str, picture: Path, label: str) -> Result:
    """The places of all objects of a kind, as objects of the class above."""
    messages = message(picture, f"detect {label}")
    answer = client.chat.completions.parse(model=model, messages=messages, response_format=Result)
    return answer.choices[0].message.parsed or Result(detections=[])


def message(picture: Path, prompt: str) -> list[Any]:
    """A picture and a prompt of PaliGemma's: caption en, answer en ..., ocr, detect ..., segment ..."""
    kind = mimetypes.guess_type(picture)[0] or "image/png"
    address = f"data:{kind};base64,{base64.b64encode(picture.read_bytes()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": prompt}]
    return [{"role": "user", "content": content}]


def arguments() -> argparse.Namespace:
    """What to ask, and whom."""
    parser = argparse.ArgumentParser(description="Ask a running mlx-paligemma server through OpenAI's client.")
    parser.add_argument("picture", nargs="?", type=Path, default=PICTURE)
    parser.add_argument("--find", default="circle", help="what to look for")
    parser.add_argument("--address", default="http://127.0.0.1:8080")
    parser.add_argument("--model", help="left out: the one that the server has")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except OpenAIError as error:
        raise SystemExit(f"error: {error} Is it the server at --address, and MLX_PALIGEMMA_API_KEY its key?") from None
