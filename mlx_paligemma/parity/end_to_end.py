"""MLX from the pixels on its own: how far each layer has drifted, and the logits of every position."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn
import numpy as np

from ..common.processor import ModelInputs
from ..generation import as_mlx
from . import budgets
from .call_store import CallStore
from .distance import Tally, relative_error
from .replay import as_numpy
from .report import Drift, LogitsParity
from .scenes import PIECE, fits_whole

LAYERS = re.compile(
    r"vision_tower\.(embeddings|post_layernorm|encoder\.layers\.\d+)|multi_modal_projector|language_model\.(norm|layers\.\d+)"
)
Capture = Callable[[str, mx.array], None]


def run_end_to_end(model: Any, inputs: ModelInputs, store: CallStore, dtype: str) -> tuple[tuple[Drift, ...], LogitsParity]:
    """One run of the model over the inputs that the reference had, compared with what the reference made of them."""
    drift: list[Drift] = []

    def compare(name: str, output: mx.array) -> None:
        for call in store.of("forward", name):
            drift.append(Drift(name, relative_error(call.compared(as_numpy(output)), call.compared(call.output))))

    with capturing(model, compare):
        if fits_whole(inputs, model.config):
            logits = model(**as_mlx(inputs))
            mx.eval(logits)
        else:
            hidden = _hidden(model, inputs)
    pieces = _cut(logits) if fits_whole(inputs, model.config) else _projected(model, hidden)
    size = budgets.Size(model.config.text.hidden_size, inputs.input_ids.shape[1])
    return tuple(drift), _compare_logits(pieces, store, inputs, budgets.logits_budget(dtype, size))


@contextmanager
def capturing(model: mlx.nn.Module, capture: Capture) -> Iterator[None]:
    """While this lasts, `capture` is handed the output of every layer of the model as it is made.

    Each module is given a class of its own that does as before and tells: the model's own files know nothing of it.
    """
    changed = [(module, type(module), name) for name, module in model.named_modules() if LAYERS.fullmatch(name)]
    for module, kind, name in changed:
        module.__class__ = _telling(kind, name, capture)
    try:
        yield
    finally:
        for module, kind, _ in changed:
            module.__class__ = kind


def _telling(kind: type, name: str, capture: Capture) -> type:
    def call(self: Any, *arguments: Any, **named: Any) -> mx.array:
        output: mx.array = kind.__call__(self, *arguments, **named)
        capture(name, output)
        return output

    return type(kind.__name__, (kind,), {"__call__": call})


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


def _compare_logits(pieces: Iterator[np.ndarray], store: CallStore, inputs: ModelInputs, budget: float) -> LogitsParity:
    """Over all positions that are not padding."""
    real, tally = inputs.attention_mask.astype(bool), Tally()
    gaps, same = [], []
    for place, (value, reference) in enumerate(zip(pieces, _reference(store), strict=True)):
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
