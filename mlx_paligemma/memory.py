"""The memory that MLX has where it computes: how much is free, and how Metal is told to use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import mlx.core as mx

from .common import memory
from .common.checkpoint import Checkpoint
from .common.config import PaliGemmaConfig
from .common.memory import Row
from .common.processor import ModelInputs
from .device import on_gpu
from .fused_layers import QUERIES
from .model.paligemma import PaliGemma

ROW = Row(queries=QUERIES)  # of a prompt about one picture
WORKING_SET = "max_recommended_working_set_size"  # Metal's; two thirds or more of a Mac's memory


def memory_budget() -> int:
    """Bytes that a model may take: what Metal recommends, a GPU's own memory, or what is free."""
    info = mx.device_info()
    names = (WORKING_SET, "free_memory", "total_memory", "memory_size")
    found = next((int(info[name]) for name in names if name in info), 0)
    return found if found and on_gpu() else memory.memory_bytes()[1]


def free_bytes() -> int:
    """What is left of the budget. Only Metal's counts what MLX holds already: elsewhere the system has taken it off."""
    held = mx.get_active_memory() if WORKING_SET in mx.device_info() else -mx.get_cache_memory()
    return memory_budget() - held


def check_model(checkpoint: Checkpoint, dtype: str) -> None:
    """Raises TooLargeError where the model would not fit in `dtype`; nothing of it is read for this."""
    weights = checkpoint.weight_bytes(dtype) if checkpoint.packings else None
    memory.check_model(checkpoint.config, dtype, ROW, free_bytes(), weights=weights, quantises=True)


def check_batch(model: PaliGemma, inputs: ModelInputs, new_tokens: int) -> None:
    """Raises TooLargeError where a batch cannot be answered beside the loaded model; nothing of it is computed for this."""
    row = replace(Row.of(inputs, model.config, new_tokens), queries=QUERIES)
    memory.check_batch(model.config, _bits(model), row, len(inputs.input_ids), free_bytes())


def fitting_rows(model: PaliGemma, row: Row) -> int:
    """How many such rows can be answered together beside the loaded model; 0: none."""
    return memory.fitting_rows(model.config, _bits(model), replace(row, queries=QUERIES), free_bytes())


@contextmanager
def small_cache(config: PaliGemmaConfig) -> Iterator[None]:
    """While weights are read or rewritten: MLX keeps few freed buffers, since those of past sizes are not wanted again.

    It would keep all of them, and the process grow to twice the model. A fortieth of the model is left for equal sizes.
    """
    before = mx.set_cache_limit(0)
    mx.set_cache_limit(min(before, memory.weight_bytes(config) // 40))
    try:
        yield
    finally:
        mx.set_cache_limit(before)


@contextmanager
def resident_weights() -> Iterator[None]:
    """Keep the model in the GPU's memory while answers are made, on Metal; elsewhere nothing is done.

    Without it macOS pages weights out that were not used for a moment. The buffers that MLX keeps for reuse get what the
    working set has beside the model. Both limits are put back at the end, when the GPU is done; inside of another such
    block the outer one's stay.
    """
    if not mx.metal.is_available():
        yield
        return
    working_set = int(mx.device_info()[WORKING_SET])
    before = mx.set_wired_limit(working_set)
    if before == working_set:
        yield
        return
    kept = mx.set_cache_limit(max(working_set - mx.get_active_memory(), 0))
    try:
        yield
    finally:
        mx.synchronize()
        mx.set_cache_limit(kept)
        mx.set_wired_limit(before)


def _bits(model: PaliGemma) -> int:
    """Of activations."""
    return 8 * model.language_model.norm.weight.itemsize
