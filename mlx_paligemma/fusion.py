"""A loaded model rewritten for speed: the same numbers from fewer and larger kernels.

The norms' 1 + w are taken into the products that follow; queries, keys and values, and gate and up, are one product each; sums
are part of the kernels before them; patches are a product; the last layer computes its last position alone in prefill; decoding
is one compiled step. The rewritten model is for inference only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .decode_step import DecodeStep, Decoding, Rows
from .device import on_gpu
from .fused_layers import FoldedNorm, FusedLayer, FusedPatches, FusedSiglipAttention, FusedSiglipMLP
from .model.gemma import soft_cap
from .model.kv_cache import KVCache
from .model.paligemma import PaliGemma
from .packed_layers import times

CPU_BLOCKS = 64  # of the output layer: as so many products, OpenBLAS multiplies a vector with its table 12 % faster


class FusedPaliGemma(PaliGemma):
    """A PaliGemma that has been rewritten. It has the same methods."""

    def __init__(self, model: PaliGemma):
        nn.Module.__init__(self)
        self.config = model.config
        self.vision_tower, self.multi_modal_projector = model.vision_tower, model.multi_modal_projector
        self.language_model = model.language_model
        if "lm_head" in model:
            self.lm_head = model.lm_head
        self.step = DecodeStep(self)
        self.blocks = CPU_BLOCKS if not on_gpu() and model.config.text.vocab_size % CPU_BLOCKS == 0 else 1

    def logits(self, hidden: mx.array, rows: Rows | None = None) -> mx.array:
        """[B, S, D] -> [B, S, V], or only the wanted rows of the output layer."""
        layer = self.language_model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        is_packed = "scales" in layer
        if rows is None and (is_packed or hidden.shape[:2] != (1, 1) or self.blocks == 1):
            return super().logits(hidden)
        if rows:
            logits = times(hidden, layer, slice(*rows)) if is_packed else hidden @ layer.weight[slice(*rows)].T
        else:
            logits = _in_blocks(hidden, layer.weight, self.blocks)
        cap = self.config.text.final_logit_softcapping
        return logits if cap is None else soft_cap(logits, cap)


def fuse(model: PaliGemma, force_fused: bool = False) -> FusedPaliGemma:
    """Rewrite a model, whose parts are used up: do not use it afterwards.

    Args:
        model: as loaded.
        force_fused: have Metal's fused attention kernel also where MLX prefers another (PaliGemma 1, prefill). Whether it is
            faster depends on the chip: `mlx-paligemma benchmark --ab force-fused` measures it. Not for the CPU.
    """
    _fuse_vision(model.vision_tower)
    _fuse_text(model.language_model, force_fused)
    return FusedPaliGemma(model)


def decoder(model: PaliGemma, cache: KVCache) -> Callable[[mx.array], mx.array]:
    """What takes the next tokens, int [B, S], through the cache that a prefill has filled, and gives their logits [B, S, V]."""
    if isinstance(model, FusedPaliGemma):
        return Decoding(model.step, cache)
    return partial(model.decode, cache=cache)


def _in_blocks(hidden: mx.array, table: mx.array, blocks: int) -> mx.array:
    """[1, 1, D] times the transposed table [V, D] -> [1, 1, V]."""
    return (hidden @ mx.unflatten(table, 0, (blocks, -1)).swapaxes(1, 2)).reshape(1, 1, -1)


def _fuse_vision(tower: Any) -> None:
    tower.embeddings = FusedPatches(tower.embeddings)
    for layer in tower.encoder.layers:
        layer.self_attn = FusedSiglipAttention(layer.self_attn)
        layer.mlp = FusedSiglipMLP(layer.mlp)
        _settle(layer)
    _settle(tower.embeddings)


def _fuse_text(text: Any, force_fused: bool) -> None:
    last = len(text.layers) - 1
    for index, layer in enumerate(text.layers):
        text.layers[index] = FusedLayer(layer, index == last, force_fused)
        _settle(text.layers[index])
    text.norm = FoldedNorm(text.norm)
    _settle(text.norm)


def _settle(module: nn.Module) -> None:
    """Make the new weights now, part by part, so that the old ones go before the next part's are made."""
    mx.eval(module.parameters())
