"""mlx-vlm as a reader of our folders: what it makes of a picture and a prompt. Runs in mlx-vlm's environment, for consumers.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np


def main(folder: str, picture: str, prompt: str, tokens: int, output: str) -> None:
    """Load with mlx-vlm's own loader and processor; save ids, pixels, logits of the prompt, and greedy tokens with logprobs."""
    from mlx_vlm.generate import generate_step
    from mlx_vlm.utils import load

    model, processor = load(folder)
    ids, pixels, mask = _inputs(processor, picture, prompt)
    logits = model(ids, pixels, mask).logits.astype(mx.float32)
    steps = list(generate_step(ids, model, pixels, mask, max_tokens=tokens, temperature=0.0))
    found = {"ids": ids, "pixels": pixels.astype(mx.float32), "logits": logits}
    found |= {"tokens": mx.array([int(token) for token, _ in steps])}
    found |= {"logprobs": mx.stack([logprobs.reshape(-1).astype(mx.float32) for _, logprobs in steps])}
    np.savez(output, **{name: np.array(array) for name, array in found.items()})


def _inputs(processor: Any, picture: str, prompt: str) -> tuple[mx.array, mx.array, mx.array]:
    from PIL import Image

    given = processor(images=Image.open(picture), text=f"<image>{prompt}", return_tensors="np")
    return mx.array(given["input_ids"]), mx.array(given["pixel_values"]), mx.array(given["attention_mask"])


if __name__ == "__main__":
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]
    main(**json.loads(sys.argv[1]))
