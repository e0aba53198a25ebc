"""Answers from the MLX model: prefill once, then token by token. Twin of torch_ref/generation.py.

The picture encoder runs once per picture. The next step is handed to the device before the last token is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from .common.decoding import Generation
from .common.processor import ImageRow, ModelInputs, PaliGemmaProcessor
from .common.results import Chunk, GenerationResult
from .common.sampling import SamplingOptions
from .model.kv_cache import KVCache
from .model.paligemma import PaliGemma


def generate(model: PaliGemma, processor: PaliGemmaProcessor, image: ImageRow, prompt: str, **options: Any) -> GenerationResult:
    """Answer one prompt about one picture, or about a list of pictures.

    Options are the fields of `SamplingOptions`: max_tokens, temperature, top_p, top_k, min_p, seed.

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
    model: PaliGemma, processor: PaliGemmaProcessor, images: Sequence[ImageRow], prompts: Sequence[str], **options: Any
) -> Generation:
    """A generation that the caller drives step by step, and whose results so far can be had at any time."""
    mx.reset_peak_memory()

    def run(inputs: ModelInputs, chosen: SamplingOptions) -> Iterator[list[int]]:
        return _steps(model, inputs, chosen)

    return Generation(run, mx.get_peak_memory, processor, images, prompts, SamplingOptions.from_dict(options))


def as_mlx(inputs: ModelInputs) -> dict[str, mx.array]:
    """The keyword arguments of `model(...)` for a batch."""
    names = ("input_ids", "pixel_values", "padding", "prefix_length")
    return {name: mx.array(array) for name in names if (array := getattr(inputs, name)) is not None}


def _steps(model: PaliGemma, inputs: ModelInputs, options: SamplingOptions) -> Iterator[list[int]]:
    """The next token of every row, max_tokens times; -1 where the scores are not finite."""
    batch, length = inputs.input_ids.shape
    steps = options.max_tokens
    arrays = as_mlx(inputs)
    rows = model.encode_images(arrays["pixel_values"])
    dtype = model.language_model.embed_tokens.weight.dtype
    cache = KVCache(model.config.text, batch, length + steps, dtype, arrays.get("padding"))
    key, now = mx.random.split(mx.random.key(options.first_seed()))  # one by one: the first tokens do not depend on max_tokens
    tokens = _next_tokens(model.prefill(arrays["input_ids"], rows, cache), options, now)
    mx.async_eval(tokens)
    for step in range(1, steps + 1):
        following = tokens
        if step < steps:
            key, now = mx.random.split(key)
            following = _next_tokens(model.decode(mx.maximum(tokens, 0)[:, None], cache), options, now)
            mx.async_eval(following)
        yield [int(token) for token in np.array(tokens)]
        tokens = following


def _next_tokens(logits: mx.array, options: SamplingOptions, key: mx.array) -> mx.array:
    """[B, 1, V] -> int [B], -1 in rows with a score that is not finite."""
    scores = logits[:, -1]
    finite = mx.isfinite(scores).all(axis=-1)
    if not options.is_greedy:
        scores = _filtered(scores.astype(mx.float32) / options.temperature, options)
        scores = scores + mx.random.gumbel(scores.shape[-1:], key=key)
    return mx.where(finite, mx.argmax(scores, axis=-1).astype(mx.int32), -1)


def _filtered(scores: mx.array, options: SamplingOptions) -> mx.array:
    """float32 [B, V] with -inf where top_k, top_p or min_p takes a token out."""
    if 0 < options.top_k < scores.shape[-1]:
        least = mx.topk(scores, options.top_k, axis=-1).min(axis=-1, keepdims=True)
        scores = mx.where(scores < least, -mx.inf, scores)
    if options.top_p < 1:
        ordered = -mx.sort(-scores, axis=-1)
        likely = mx.softmax(ordered, axis=-1)
        kept = mx.cumsum(likely, axis=-1) - likely < options.top_p
        least = mx.where(kept, ordered, mx.inf).min(axis=-1, keepdims=True)
        scores = mx.where(scores < least, -mx.inf, scores)
    if options.min_p > 0:
        likely = mx.softmax(scores, axis=-1)
        scores = mx.where(likely < options.min_p * likely.max(axis=-1, keepdims=True), -mx.inf, scores)
    return scores
