"""Answers from the PyTorch model: prefill once, then token by token. Twin of mlx_paligemma/generation.py.

The picture encoder runs once per picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mlx_paligemma.common.decoding import Generation
from mlx_paligemma.common.processor import ImageRow, ModelInputs, PaliGemmaProcessor
from mlx_paligemma.common.results import Chunk, GenerationResult
from mlx_paligemma.common.sampling import SamplingOptions

from .device import peak_memory, reset_peak_memory
from .kv_cache import KVCache
from .paligemma import PaliGemma


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
    device = model.language_model.embed_tokens.weight.device
    reset_peak_memory(device)

    def run(inputs: ModelInputs, chosen: SamplingOptions) -> Iterator[list[int]]:
        return _steps(model, inputs, chosen)

    return Generation(run, lambda: peak_memory(device), processor, images, prompts, SamplingOptions.from_dict(options))


def as_torch(inputs: ModelInputs, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The keyword arguments of `model(...)` for a batch."""
    names = ("input_ids", "pixel_values", "padding", "prefix_length")
    return {name: torch.from_numpy(array).to(device) for name in names if (array := getattr(inputs, name)) is not None}


@torch.inference_mode()
def _steps(model: PaliGemma, inputs: ModelInputs, options: SamplingOptions) -> Iterator[list[int]]:
    """The next token of every row, max_tokens times; -1 where the scores are not finite."""
    batch, length = inputs.input_ids.shape
    steps = options.max_tokens
    table = model.language_model.embed_tokens.weight
    tensors = as_torch(inputs, table.device)
    rows = model.encode_images(tensors["pixel_values"])
    cache = KVCache(model.config.text, batch, length + steps, table.dtype, tensors.get("padding"), table.device)
    noise = torch.Generator(table.device).manual_seed(options.first_seed())
    tokens = _next_tokens(model.prefill(tensors["input_ids"], rows, cache), options, noise)
    yield tokens.tolist()
    for _ in range(steps - 1):
        tokens = _next_tokens(model.decode(tokens.clamp(min=0)[:, None], cache), options, noise)
        yield tokens.tolist()


def _next_tokens(logits: Tensor, options: SamplingOptions, noise: torch.Generator) -> Tensor:
    """[B, 1, V] -> int [B], -1 in rows with a score that is not finite."""
    scores = logits[:, -1]
    finite = scores.isfinite().all(-1)
    if not options.is_greedy:
        scores = _filtered(scores.float() / options.temperature, options)
        uniform = torch.rand(scores.shape[-1:], generator=noise, device=scores.device)
        scores = scores - torch.log(-torch.log(uniform.clamp(min=1e-30)))
    return torch.where(finite, scores.argmax(-1), -1)


def _filtered(scores: Tensor, options: SamplingOptions) -> Tensor:
    """float32 [B, V] with -inf where top_k, top_p or min_p takes a token out."""
    if 0 < options.top_k < scores.shape[-1]:
        least = scores.topk(options.top_k).values.min(-1, keepdim=True).values
        scores = scores.masked_fill(scores < least, -torch.inf)
    if options.top_p < 1:
        ordered = scores.sort(descending=True).values
        likely = ordered.softmax(-1)
        kept = likely.cumsum(-1) - likely < options.top_p
        least = ordered.masked_fill(~kept, torch.inf).min(-1, keepdim=True).values
        scores = scores.masked_fill(scores < least, -torch.inf)
    if options.min_p > 0:
        likely = scores.softmax(-1)
        scores = scores.masked_fill(likely < options.min_p * likely.max(-1, keepdim=True).values, -torch.inf)
    return scores
