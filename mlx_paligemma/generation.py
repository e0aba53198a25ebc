"""Answers from the MLX model: prefill once, then token by token. Twin of torch_ref/generation.py.

The picture encoder runs once per different picture. The next step is handed to the device before the last token is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from .common.decoding import Generation, Request, Step
from .common.feature_cache import FeatureCache, check_cache, picture_features
from .common.processor import ImageRow, ModelInputs, PaliGemmaProcessor
from .common.results import Chunk, GenerationResult
from .common.sampling import SamplingOptions
from .decode_step import Decoding, capacity_for
from .fusion import decoder
from .look_ahead import LONGEST, Guesses, steps_ahead
from .memory import check_batch, resident_weights
from .model.kv_cache import KVCache
from .model.paligemma import PaliGemma
from .next_token import TokenChooser


def generate(model: PaliGemma, processor: PaliGemmaProcessor, image: ImageRow, prompt: str, **options: Any) -> GenerationResult:
    """Answer one prompt about one picture, or about a list of pictures.

    Options are the fields of `SamplingOptions`: max_tokens, temperature, top_p, top_k, min_p, seed, grammar, token_logprobs,
    top_logprobs, min_score, look_ahead; and `features`, a `FeatureCache` that remembers encoded pictures from call to call.

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
    mx.reset_peak_memory()

    check_cache(features)

    def run(request: Request) -> Iterator[Step]:
        check_batch(model, request.inputs, request.options.max_tokens)
        return steps_of(model, request, features, _guesses(processor, request, prompts))

    return Generation(run, mx.get_peak_memory, processor, images, prompts, SamplingOptions.from_dict(options))


def _guesses(processor: PaliGemmaProcessor, request: Request, prompts: Sequence[str]) -> Guesses | None:
    """For one row that is decoded greedily under the grammar. Log-probabilities need all rows of the output layer."""
    options = request.options
    alone = len(prompts) == 1 and request.plan is not None and options.is_greedy
    return Guesses.of(processor.tokenizer, prompts[0]) if alone and options.look_ahead and not options.tells_logprobs else None


def as_mlx(inputs: ModelInputs) -> dict[str, mx.array]:
    """The keyword arguments of `model(...)` for a batch."""
    names = ("input_ids", "pixel_values", "padding", "prefix_length")
    return {name: mx.array(array) for name in names if (array := getattr(inputs, name)) is not None}


def steps_of(
    model: PaliGemma, request: Request, features: FeatureCache | None = None, guesses: Guesses | None = None
) -> Iterator[Step]:
    """max_tokens steps. The next one is handed to the device before the last is read."""
    with resident_weights():
        choose = TokenChooser(request)
        logits, cache = _prefill(model, request, features)
        chosen = choose(logits)
        mx.async_eval(*chosen)
        decode = decoder(model, cache)
        if guesses is not None and isinstance(decode, Decoding):
            yield from steps_ahead(choose, decode, chosen, guesses, request.options.max_tokens)
        else:
            yield from _one_by_one(choose, decode, chosen, request.options.max_tokens)


def _prefill(model: PaliGemma, request: Request, features: FeatureCache | None) -> tuple[mx.array, KVCache]:
    """Logits [B, 1, V] after the prompts, and the cache that holds them."""
    inputs = request.inputs
    batch, length = inputs.input_ids.shape
    dtype = model.language_model.norm.weight.dtype  # norms are never packed
    padding = None if inputs.padding is None else mx.array(inputs.padding)
    cache = KVCache(model.config.text, batch, capacity_for(length + request.options.max_tokens + LONGEST), dtype, padding)
    return model.prefill(mx.array(inputs.input_ids), image_rows(model, inputs, features), cache), cache


def _one_by_one(
    choose: TokenChooser, decode: Callable[[mx.array], mx.array], chosen: tuple[mx.array, ...], steps: int
) -> Iterator[Step]:
    for step in range(1, steps + 1):
        following = chosen
        if step < steps:
            following = choose(decode(mx.maximum(chosen[0], 0)[:, None]))
            mx.async_eval(*following)
        yield Step(*(np.array(part).tolist() for part in chosen))
        chosen = following


def image_rows(model: PaliGemma, inputs: ModelInputs, features: FeatureCache | None = None) -> mx.array:
    """Image rows [B, I * P, D] of a batch."""

    def encode(pixels: np.ndarray) -> list[mx.array]:
        rows = list(model.encode_images(mx.array(pixels)[:, None]))
        mx.async_eval(*rows)  # rows that are kept must not hold on to what they come from
        return rows

    found = picture_features(model, inputs, encode, features)
    blank = mx.zeros_like(found[0][0])  # no token reads it
    return mx.stack([mx.concatenate([blank if rows is None else rows for rows in row]) for row in found])
