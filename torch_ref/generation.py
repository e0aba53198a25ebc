"""Answers from the PyTorch model: prefill once, then token by token. Twin of mlx_paligemma/generation.py.

The picture encoder runs once per different picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlx_paligemma.common.decoding import Generation, Request, Step
from mlx_paligemma.common.feature_cache import FeatureCache, check_cache, picture_features
from mlx_paligemma.common.processor import ImageRow, ModelInputs, PaliGemmaProcessor
from mlx_paligemma.common.results import Chunk, GenerationResult
from mlx_paligemma.common.sampling import SamplingOptions

from .device import peak_memory, reset_peak_memory
from .kv_cache import KVCache
from .memory import check_batch
from .next_token import TokenChooser
from .paligemma import PaliGemma


def generate(model: PaliGemma, processor: PaliGemmaProcessor, image: ImageRow, prompt: str, **options: Any) -> GenerationResult:
    """Answer one prompt about one picture, or about a list of pictures.

    Options are the fields of `SamplingOptions`: max_tokens, temperature, top_p, top_k, min_p, seed, grammar, token_logprobs,
    top_logprobs, min_score, look_ahead (which this backend ignores); and `features`, a `FeatureCache` that remembers encoded
    pictures from call to call.

    Raises:
        ImageError, PromptError, OptionError: the input cannot be used.
        NumericError: the model produced numbers that are not finite.
    """
    return start(model, processor, [image], [prompt], **options).run()[0]


def stream_generate(
    model: PaliGemma, processor: PaliGemmaProcessor, image: ImageRow, prompt: str, **options: Any
) -> Iterator[Chunk]:
    """Like `generate`, but yields the answer piece by piece; the last chunk has a finish_reason."""
    for chunks in start(model, processor, [image], [prompt], **options):
        if chunks[0] is not None:
            yield chunks[0]


def batch_generate(
    model: PaliGemma, processor: PaliGemmaProcessor, images: Sequence[ImageRow], prompts: Sequence[str], **options: Any
) -> list[GenerationResult]:
    """Answer `prompts[b]` about `images[b]`, all in one batch; each answer is the one that `generate` would give."""
    return start(model, processor, images, prompts, **options).run()


def start(
    model: PaliGemma,
    processor: PaliGemmaProcessor,
    images: Sequence[ImageRow],
    prompts: Sequence[str],
    features: FeatureCache | None = None,
    **options: Any,
) -> Generation:
    """A generation that the caller drives step by step, and whose results so far can be had at any time."""
    device = model.language_model.embed_tokens.weight.device
    reset_peak_memory(device)

    check_cache(features)

    def run(request: Request) -> Iterator[Step]:
        check_batch(model, request.inputs, request.options.max_tokens)
        return steps_of(model, request, features)

    return Generation(run, lambda: peak_memory(device), processor, images, prompts, SamplingOptions.from_dict(options))


def as_torch(inputs: ModelInputs, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The keyword arguments of `model(...)` for a batch."""
    names = ("input_ids", "pixel_values", "padding", "prefix_length")
    return {name: torch.from_numpy(array).to(device) for name in names if (array := getattr(inputs, name)) is not None}


@torch.inference_mode()
def steps_of(model: PaliGemma, request: Request, features: FeatureCache | None) -> Iterator[Step]:
    """max_tokens steps."""
    inputs, steps = request.inputs, request.options.max_tokens
    batch, length = inputs.input_ids.shape
    table = model.language_model.embed_tokens.weight
    padding = None if inputs.padding is None else torch.from_numpy(inputs.padding).to(table.device)
    cache = KVCache(model.config.text, batch, length + steps, table.dtype, padding, table.device)
    choose = TokenChooser(request, table.device)
    input_ids = torch.from_numpy(inputs.input_ids).to(table.device)
    chosen = choose(model.prefill(input_ids, image_rows(model, inputs, features), cache))
    for _ in range(steps - 1):
        yield Step(*(part.tolist() for part in chosen))
        chosen = choose(model.decode(chosen[0].clamp(min=0)[:, None], cache))
    yield Step(*(part.tolist() for part in chosen))


def image_rows(model: PaliGemma, inputs: ModelInputs, features: FeatureCache | None) -> Tensor:
    """Image rows [B, I * P, D] of a batch."""
    device = model.language_model.embed_tokens.weight.device

    def encode(pixels: np.ndarray) -> list[Tensor]:
        rows = model.encode_images(torch.from_numpy(pixels).to(device)[:, None])
        return [row.clone() for row in rows]  # a view that is kept would keep its whole batch

    found = picture_features(model, inputs, encode, features)
    blank = torch.zeros_like(found[0][0])  # no token reads it
    return torch.stack([torch.cat([blank if rows is None else rows for rows in row]) for row in found])
