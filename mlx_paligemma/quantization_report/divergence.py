"""How far a model's belief about the next token lies from another's: Kullback-Leibler divergence, in nats.

Source: Kullback and Leibler, On Information and Sufficiency, 1951. KL(p || q) = sum of p * (log p - log q), with p the
reference's distribution. Both models read the reference's answers (teacher forcing), so that one early difference does not
make all that follows incomparable.
Axes: B rows, S tokens of the longest answer, D hidden_size, V vocabulary rows, N positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np

from ..common.processor import ModelInputs
from ..generation import image_rows
from ..memory import resident_weights
from ..model.kv_cache import KVCache
from .answers import Asker, Batch

PIECE = 64  # positions whose scores are in memory together: with a real vocabulary 66 MB in float32, of each model


def mean_divergence(reference: Asker, other: Asker) -> float | None:
    """KL(reference || other) in nats, the mean over all positions of the reference's answers; None where there are none."""
    found: list[float] = []
    with resident_weights():
        for number, batch in enumerate(reference.batches):
            other.tell(f"divergence, batch {number + 1} of {len(reference.batches)}")
            found += batch_divergence(reference, other, batch)
    return float(np.mean(found)) if found else None


def batch_divergence(reference: Asker, other: Asker, batch: Batch) -> list[float]:
    """KL(reference || other) at every position of the batch's answers, eos included."""
    inputs = reference.processor(list(batch.pictures), list(batch.prompts))
    answers = [answer.token_ids for answer in batch.answers]
    pieces = zip(_scores(reference, inputs, answers), _scores(other, inputs, answers), strict=True)
    return [value for ours, theirs in pieces for value in _divergence(ours, theirs)]


def _divergence(reference: mx.array, other: mx.array) -> list[float]:
    """Scores [N, V] of both -> N values. Rounding can make those of equal distributions negative."""
    p, q = (scores.astype(mx.float32) for scores in (reference, other))
    p, q = (scores - mx.logsumexp(scores, axis=-1, keepdims=True) for scores in (p, q))
    return [float(value) for value in np.array(mx.maximum((mx.exp(p) * (p - q)).sum(axis=-1), 0))]


def _scores(asker: Asker, inputs: ModelInputs, answers: Sequence[Sequence[int]]) -> Iterator[mx.array]:
    """Logits [N, V] for each answer's tokens, N at most B or PIECE: first those of all first tokens, then the others'.

    The prompts are prefilled, the answers follow in one step; what stands behind the end of a shorter answer is not counted.
    """
    model, (batch, length) = asker.model, inputs.input_ids.shape
    lengths = np.array([len(answer) for answer in answers])
    tokens = np.zeros((batch, lengths.max()), dtype=np.int32)
    for row, answer in zip(tokens, answers, strict=True):
        row[: len(answer)] = answer
    dtype = model.language_model.norm.weight.dtype
    padding = None if inputs.padding is None else mx.array(inputs.padding)
    cache = KVCache(model.config.text, batch, length + tokens.shape[1], dtype, padding)
    first = model.prefill(mx.array(inputs.input_ids), image_rows(model, inputs, asker.features), cache)
    yield first[mx.array(np.flatnonzero(lengths > 0)), 0]
    if lengths.max() > 1:
        hidden = model.language_model(model.language_model.embed(mx.array(tokens[:, :-1])), cache.padding, None, cache)
        counted = np.flatnonzero(np.arange(1, tokens.shape[1]) < lengths[:, None])
        for start in range(0, len(counted), PIECE):
            piece = hidden.flatten(0, 1)[mx.array(counted[start : start + PIECE])]
            yield model.logits(piece[None])[0]
