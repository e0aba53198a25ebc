"""One timed run, through the same prefill and decoding loop that answers go through."""

from __future__ import annotations

import time
from dataclasses import dataclass

import mlx.core as mx

from .. import generation
from ..common.errors import NumericError
from ..common.processor import ModelInputs
from ..model.paligemma import PaliGemma
from .requests import greedy_request


@dataclass(frozen=True)
class Trial:
    """What one run cost."""

    time_to_first_token_s: float  # from pixels and ids in memory to the first token in hand
    decode_s: float  # from the first token to the last
    first_token_cpu_s: float  # of all threads, in the same span; what other programs take of a busy machine is not in it
    decode_cpu_s: float
    peak_memory_bytes: int  # that MLX held at once, weights included
    token_ids: list[list[int]]  # of each step, one per row


def run_trial(model: PaliGemma, inputs: ModelInputs, tokens: int) -> Trial:
    """Generate `tokens` tokens in every row.

    Raises:
        NumericError: the model produced numbers that are not finite.
    """
    request = greedy_request(model.config, inputs, tokens)
    mx.synchronize()
    mx.reset_peak_memory()
    times, cpu, chosen = [time.perf_counter()], [time.process_time()], []
    for step in generation.steps_of(model, request, None):
        times.append(time.perf_counter())
        cpu.append(time.process_time())
        chosen.append(step.token_ids)
    if min(map(min, chosen)) < 0:
        raise NumericError("the model's scores are not finite (NaN or infinite); try --dtype float32")
    spans = (times[1] - times[0], times[-1] - times[1], cpu[1] - cpu[0], cpu[-1] - cpu[1])
    return Trial(*spans, mx.get_peak_memory(), chosen)


def vision_seconds(model: PaliGemma, inputs: ModelInputs) -> float:
    """The picture encoder and projector alone, on all pictures of a batch."""
    mx.synchronize()
    started = time.perf_counter()
    mx.eval(generation.image_rows(model, inputs, None))
    return time.perf_counter() - started
