"""MLX from the pixels on its own: how far each layer has drifted, and the logits of every position."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np

from ..common.processor import ModelInputs
from ..generation import as_mlx
from ..model.kv_cache import KVCache
from . import budgets
from .call import DECODED
from .call_store import CallStore
from .capturing import capturing
from .distance import Tally, relative_error
from .replay import as_numpy
from .report import Drift, LogitsParity
from .scenes import PIECE, Scenes, fits_whole

LAYERS = re.compile(
    r"vision_tower\.(embeddings|post_layernorm|encoder\.layers\.\d+)|multi_modal_projector|language_model\.(norm|layers\.\d+)"
)


def run_end_to_end(model: Any, inputs: ModelInputs, store: CallStore, dtype: str) -> tuple[tuple[Drift, ...], LogitsParity]:
    """One run of the model over the inputs that the reference had, compared with what the reference made of them."""
    drift: list[Drift] = []

    def compare(name: str, arguments: tuple[Any, ...], output: mx.array) -> None:
        for call in store.of("forward", name):
            drift.append(Drift(name, relative_error(call.compared(as_numpy(output)), call.compared(call.output))))

    with capturing(model, LAYERS, compare):
        if fits_whole(inputs, model.config):
            logits = model(**as_mlx(inputs))
            mx.eval(logits)
        else:
            hidden = _hidden(model, inputs)
    pieces = _cut(logits) if fits_whole(inputs, model.config) else _projected(model, hidden)
    size = budgets.Size(model.config.text.hidden_size, inputs.input_ids.shape[1])
    pairs = zip(pieces, _reference(store), strict=True)
    return tuple(drift), _compare_logits(pairs, inputs.attention_mask.astype(bool), budgets.logits_budget(dtype, size))


def run_decoding(model: Any, scenes: Scenes, store: CallStore, dtype: str) -> LogitsParity:
    """The prompts and then the decoded tokens through MLX's own cache, compared with the reference's logits."""
    arrays = as_mlx(scenes.prompts)
    rows, steps = scenes.decoded.shape
    length = scenes.prompts.input_ids.shape[1]
    images = model.encode_images(arrays["pixel_values"])
    cache = KVCache(model.config.text, rows, length + steps, images.dtype, arrays.get("padding"))
    parts = [model.prefill(arrays["input_ids"], images, cache)]
    parts += [model.decode(mx.array(chunk), cache) for chunk in scenes.chunks]
    (reference,) = store.of(DECODED, DECODED)
    size = budgets.Size(model.config.text.hidden_size, length + steps)
    pairs = [(as_numpy(mx.concatenate(parts, axis=1)), reference.output)]
    return _compare_logits(pairs, np.ones((rows, 1 + steps), dtype=bool), budgets.logits_budget(dtype, size))


def _hidden(model: Any, inputs: ModelInputs) -> mx.array:
    """The normed hidden states [B, L, D], where the logits of all positions would not fit into memory."""
    arrays = as_mlx(inputs)
    x = model.embed(arrays["input_ids"], model.encode_images(arrays["pixel_values"]))
    hidden: mx.array = model.language_model(x, arrays.get("padding"), arrays.get("prefix_length"))
    return hidden


def _cut(logits: mx.array) -> Iterator[np.ndarray]:
    return (as_numpy(logits[:, start : start + PIECE]) for start in range(0, logits.shape[1], PIECE))


def _projected(model: Any, hidden: mx.array) -> Iterator[np.ndarray]:
    return (as_numpy(model.logits(hidden[:, start : start + PIECE])) for start in range(0, hidden.shape[1], PIECE))


def _reference(store: CallStore) -> Iterator[np.ndarray]:
    """The reference's logits, PIECE positions at a time, whether they were made whole or in pieces."""
    for call in store.of("forward", "logits"):
        for start in range(0, call.output.shape[1], PIECE):
            yield np.asarray(call.output[:, start : start + PIECE])


def _compare_logits(pairs: Iterable[tuple[np.ndarray, np.ndarray]], real: np.ndarray, budget: float) -> LogitsParity:
    """Pieces [B, PIECE, V] of both sides, over the positions where `real` [B, L] is True."""
    tally = Tally()
    gaps, same = [], []
    for place, (value, reference) in enumerate(pairs):
        counted = real[:, place * PIECE : (place + 1) * PIECE]
        if not counted.any():
            continue
        found, wanted = value[counted], reference[counted]
        with np.errstate(invalid="ignore", over="ignore"):
            tally.add(found, wanted)
        best = np.partition(wanted, -2, axis=-1)[:, -2:]
        gaps.append(best[:, 1] - best[:, 0])
        same.append(found.argmax(-1) == wanted.argmax(-1))
    gap, agrees = np.concatenate(gaps), np.concatenate(same)
    flipped = None if agrees.all() else float(gap[~agrees].max())
    return LogitsParity(tally.distance, int(agrees.size), float(agrees.mean()), float(np.median(gap)), flipped, budget)
