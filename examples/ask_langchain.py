"""Ask a running server through LangChain: whole, streamed, several at once, and as objects of a class.

pip install langchain-openai
python ask_langchain.py photo.jpg --find cat
"""

from __future__ import annotations

import argparse
import base64
import mimetypes
import os
from pathlib import Path

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from openai import OpenAIError
from pydantic import BaseModel, SecretStr

PICTURE = Path(__file__).parent.parent / "mlx_paligemma" / "demo" / "shapes.png"


class Found(BaseModel):
    """One object. Its fields are a part of those that the server has; it sends no others."""

    label: str
    box: list[float]  # x0, y0, x1, y1 in pixels of the picture


class Result(BaseModel):
    """Everything that was found."""

    detections: list[Found]


def main() -> None:
    """Ask in four ways."""
    wanted = arguments()
    key = SecretStr(os.environ.get("MLX_PALIGEMMA_API_KEY", "none"))
    model = ChatOpenAI(base_url=f"{wanted.address.removesuffix('/v1')}/v1", api_key=key, model=wanted.model)
    question = message(wanted.picture, "caption en")
    print("caption  ", model.invoke([question]).text)
    print("streamed  ", end="")
    for chunk in model.stream([question]):
        print(chunk.text, end="", flush=True)
    print()
    prompts = ("answer en how many shapes are there?", f"answer en what color is the {wanted.find}?")
    for answer in model.batch([[message(wanted.picture, prompt)] for prompt in prompts]):
        print("together ", answer.text)
    for item in find(model, wanted.picture, wanted.find).detections:
        print("found    ", item.label, *(f"{edge:.1f}" for edge in item.box))


def find(model: ChatOpenAI, picture: Path, label: str) -> Result:
    """The places of all objects of a kind, as objects of the class above. The server knows no function calls, so by schema."""
    answer = model.with_structured_output(Result, method="json_schema").invoke([message(picture, f"detect {label}")])
    return Result.model_validate(answer)


def message(picture: Path, prompt: str) -> HumanMessage:
    """A picture and a prompt of PaliGemma's: caption en, answer en ..., ocr, detect ..., segment ..."""
    kind = mimetypes.guess_type(picture)[0] or "image/png"
    address = f"data:{kind};base64,{base64.b64encode(picture.read_bytes()).decode()}"
    return HumanMessage([{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": prompt}])


def arguments() -> argparse.Namespace:
    """What to ask, and whom."""
    parser = argparse.ArgumentParser(description="Ask a running mlx-paligemma server through LangChain.")
    parser.add_argument("picture", nargs="?", type=Path, default=PICTURE)
    parser.add_argument("--find", default="circle", help="what to look for")
    parser.add_argument("--address", default="http://127.0.0.1:8080")
    parser.add_argument("--model", default="demo", help="as /v1/models lists it")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except OpenAIError as error:
        raise SystemExit(f"error: {error} Is it the server at --address, and MLX_PALIGEMMA_API_KEY its key?") from None
