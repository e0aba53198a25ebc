"""What the clients ask, and what a single run answers."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_paligemma import generate, load
from mlx_paligemma.demo.questions import ask
from mlx_paligemma.demo.scenes import draw_scene


@dataclass(frozen=True)
class Question:
    """A picture, a prompt, and the answer of a run of its own."""

    picture: str  # a data: address
    prompt: str
    answer: str
    tokens: int

    def body(self, is_streamed: bool) -> dict[str, Any]:
        """As a chat request; temperature 0, as the single run."""
        content = [{"type": "image_url", "image_url": {"url": self.picture}}, {"type": "text", "text": self.prompt}]
        plain = {"messages": [{"role": "user", "content": content}]}
        return plain | ({"stream": True, "stream_options": {"include_usage": True}} if is_streamed else {})


def single_runs(count: int, seed: int) -> list[Question]:
    """Random prompts about random scenes, answered one by one by the bundled model."""
    model, processor = load()
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        scene = draw_scene(rng)
        prompt = ask(scene, rng, lambda shape: [0] * 16).prefix
        result = generate(model, processor, scene.image, prompt)
        found.append(Question(_address(scene.image), prompt, result.text, result.stats.generation_tokens))
    return found


def _address(image: Any) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
