"""Errors that ports of PaliGemma have had or could have, each planted into an MLX model with one change.

Many are real: earlier ports and early versions of transformers had them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_paligemma.model import gemma, kv_cache, paligemma, siglip

LAYER = "language_model.layers.0"
ATTENTION = f"{LAYER}.self_attn"
BLOCK = "vision_tower.encoder.layers.0"


@dataclass(frozen=True)
class Fault:
    """One error, and the module that the comparison has to blame for it."""

    name: str
    blamed: str
    plant: Callable[[Any, paligemma.PaliGemma], None]  # given pytest's monkeypatch and the model
    generations: tuple[int, ...] = (1, 2)


def faults() -> list[Fault]:
    """All of them, from pixels to logits."""
    return [*_vision(), *_rows(), *_norms_and_mlp(), *_attention(), *_masks(), *_cache_and_head()]


def _vision() -> list[Fault]:
    def flipped_kernel(patch, model):
        kernel = model.vision_tower.embeddings.patch_embedding
        kernel.weight = kernel.weight.transpose(0, 2, 1, 3)

    def bgr(patch, model):
        call = siglip.SiglipVisionEmbeddings.__call__
        patch.setattr(siglip.SiglipVisionEmbeddings, "__call__", lambda self, pixels: call(self, pixels[..., ::-1]))

    def shifted_positions(patch, model):
        table = model.vision_tower.embeddings.position_embedding
        table.weight = mx.roll(table.weight, 1, axis=0)

    def epsilon(patch, model):
        for _, module in model.vision_tower.named_modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-5

    def last_epsilon(patch, model):
        model.vision_tower.post_layernorm.eps = 1e-5

    def no_bias(patch, model):
        for block in model.vision_tower.encoder.layers:
            block.self_attn.out_proj.bias = mx.zeros_like(block.self_attn.out_proj.bias)

    def first_picture(patch, model):
        call = siglip.SiglipEncoder.__call__
        patch.setattr(siglip.SiglipEncoder, "__call__", lambda self, x: mx.broadcast_to(call(self, x)[:1], x.shape))

    def last_block_left_out(patch, model):
        def call(self, x):
            for layer in self.layers[:-1]:
                x = layer(x)
            return x

        patch.setattr(siglip.SiglipEncoder, "__call__", call)

    def no_last_norm(patch, model):
        patch.setattr(siglip.SiglipVisionModel, "__call__", lambda self, pixels: self.encoder(self.embeddings(pixels)))

    def exact_gelu(patch, model):
        patch.setattr(siglip.SiglipMLP, "__call__", lambda self, x: self.fc2(nn.gelu(self.fc1(x))))

    def rounded(patch, model):
        model.update(_mapped(model.parameters(), lambda array: array.astype(mx.bfloat16).astype(mx.float32)))

    return [
        Fault("weights rounded to bfloat16", "vision_tower.embeddings.patch_embedding", rounded),
        Fault("patch kernel's rows and columns exchanged", "vision_tower.embeddings.patch_embedding", flipped_kernel),
        Fault("colours in the order blue, green, red", "vision_tower.embeddings", bgr),
        Fault("position table shifted by one patch", "vision_tower.embeddings", shifted_positions),
        Fault("layer norms with MLX's epsilon of 1e-5", f"{BLOCK}.layer_norm1", epsilon),
        Fault("attention output without its bias", f"{BLOCK}.self_attn.out_proj", no_bias),
        Fault("exact GELU in the vision tower", f"{BLOCK}.mlp", exact_gelu),
        Fault("the batch's first picture for every row", "vision_tower.encoder", first_picture),
        Fault("features of the last block but one", "vision_tower.encoder", last_block_left_out),
        Fault("post_layernorm with MLX's epsilon of 1e-5", "vision_tower.post_layernorm", last_epsilon),
        Fault("post_layernorm left out", "vision_tower", no_last_norm),
    ]


def _rows() -> list[Fault]:
    def one_picture(patch, model):
        call = paligemma.PaliGemma.encode_images

        def encode(self, pixels):
            rows = call(self, pixels[:, :1])
            return mx.concatenate([rows] + [mx.zeros_like(rows)] * (pixels.shape[1] - 1), axis=1)

        patch.setattr(paligemma.PaliGemma, "encode_images", encode)

    def unscaled_text(patch, model):
        patch.setattr(gemma.GemmaModel, "embed", lambda self, ids: self.embed_tokens(ids))

    def scaled_images(patch, model):
        call, root = paligemma.PaliGemma.embed, model.config.text.hidden_size**0.5
        patch.setattr(paligemma.PaliGemma, "embed", lambda self, ids, rows: call(self, ids, rows * root))

    def images_at_the_left(patch, model):
        def embed(self, ids, rows):
            is_image, text = ids == self.config.image_token_index, self.language_model.embed(ids)
            index = mx.minimum(mx.arange(ids.shape[1]), rows.shape[1] - 1)  # the column, whatever the padding
            return mx.where(is_image[..., None], rows[:, index], text)

        patch.setattr(paligemma.PaliGemma, "embed", embed)

    return [
        Fault("only the first picture of a row", "encode_images", one_picture),
        Fault("text rows without the factor sqrt(d)", "language_model.embed", unscaled_text),
        Fault("image rows scaled by sqrt(d) too", "embed", scaled_images),
        Fault("image rows by column, blind to left padding", "embed", images_at_the_left),
    ]


def _norms_and_mlp() -> list[Fault]:
    def epsilon(patch, model):
        for _, module in model.language_model.named_modules():
            if isinstance(module, gemma.RMSNorm):
                module.eps = 1e-5

    def plain_weight(patch, model):
        patch.setattr(gemma.RMSNorm, "__call__", lambda self, x: mx.fast.rms_norm(x, self.weight, self.eps))

    def exact_gelu(patch, model):
        patch.setattr(gemma.GemmaMLP, "__call__", lambda self, x: self.down_proj(nn.gelu(self.gate_proj(x)) * self.up_proj(x)))

    def exchanged(patch, model):
        def call(self, x):
            return self.down_proj(self.gate_proj(x) * nn.gelu_approx(self.up_proj(x)))

        patch.setattr(gemma.GemmaMLP, "__call__", call)

    def no_sandwich(patch, model):
        def call(self, x, offset, mask, cache):
            x = x + self.self_attn(self.input_layernorm(x), offset, mask, cache)
            return x + self.mlp(self.pre_feedforward_layernorm(x))

        patch.setattr(gemma.Gemma2Layer, "__call__", call)

    return [
        Fault("RMS norms with an epsilon of 1e-5", f"{LAYER}.input_layernorm", epsilon),
        Fault("RMS norms with w for 1 + w", f"{LAYER}.input_layernorm", plain_weight),
        Fault("exact GELU in the language model", f"{LAYER}.mlp", exact_gelu),
        Fault("gate and up exchanged", f"{LAYER}.mlp", exchanged),
        Fault("Gemma 2 without the norms after attention and MLP", LAYER, no_sandwich, (2,)),
    ]


def _attention() -> list[Fault]:
    def on_ropes(name, value):
        def plant(patch, model):
            for layer in model.language_model.layers:
                setattr(layer.self_attn.rope, name, value)

        return plant

    def scale(patch, model):
        for layer in model.language_model.layers:
            layer.self_attn.scale = model.config.text.head_dim**-0.5

    def no_cap(patch, model):
        for layer in model.language_model.layers:
            layer.self_attn.cap = None

    def cap_after_mask(patch, model):
        def attend(self, q, k, v, mask):
            k, v = (mx.repeat(x, self.num_heads // self.num_kv_heads, axis=1) for x in (k, v))
            scores = q @ k.swapaxes(-1, -2) * self.scale
            scores = scores if mask is None else mx.where(mask, scores, mx.finfo(scores.dtype).min)
            return mx.softmax(gemma.soft_cap(scores, self.cap), axis=-1) @ v

        patch.setattr(gemma.Gemma2Attention, "_attend", attend)

    def interleaved_heads(patch, model):
        attend = gemma.Gemma2Attention._attend
        order = mx.array([0, 2, 1, 3])  # n % K for n // G; its own inverse

        patch.setattr(gemma.Gemma2Attention, "_attend", lambda self, q, k, v, mask: attend(self, q[:, order], k, v, mask)[:, order])

    def added_mask(patch, model):
        attend = gemma.GemmaAttention._attend

        def plant(self, q, k, v, mask):
            return attend(self, q, k, v, None if mask is None else mask.astype(q.dtype))

        patch.setattr(gemma.GemmaAttention, "_attend", plant)

    return [
        Fault("rotary pairs side by side", f"{ATTENTION}.rope", on_ropes("traditional", True)),
        Fault("rotary base of 100000", f"{ATTENTION}.rope", on_ropes("base", 1e5)),
        Fault("query scale by the size of a head", ATTENTION, scale, (2,)),
        Fault("attention scores without a cap", ATTENTION, no_cap, (2,)),
        Fault("attention scores capped after the mask", ATTENTION, cap_after_mask, (2,)),
        Fault("query head n reads key-value head n mod K", ATTENTION, interleaved_heads, (2,)),
        Fault("mask added as 0 and 1", ATTENTION, added_mask, (1,)),
    ]


def _masks() -> list[Fault]:
    def masked(change):
        """`change` is given the mask's arguments, and gives others."""

        def plant(patch, model):
            mask = gemma.prefix_lm_mask
            patch.setattr(gemma, "prefix_lm_mask", lambda *arguments: mask(*change(*arguments)))

        return plant

    def padded(change):
        def plant(patch, model):
            call = gemma.GemmaModel.__call__

            def changed(self, x, padding=None, prefix_length=None, cache=None):
                return call(self, x, change(padding), prefix_length, cache)

            patch.setattr(gemma.GemmaModel, "__call__", changed)

        return plant

    def windowed_prefix(patch, model):
        mask = gemma.prefix_lm_mask

        def cut(start, queries, keys, prefix, window=None):
            seen = mask(start, queries, keys, prefix)
            near = mx.arange(keys) > mx.arange(keys - queries, keys)[:, None] - (window or keys)
            return seen & near

        patch.setattr(gemma, "prefix_lm_mask", cut)

    return [
        Fault("causal prefix", "language_model", masked(lambda s, q, k, p, w=None: (s, q, k, mx.zeros_like(p), w))),
        Fault("suffix seen by all", "language_model", masked(lambda s, q, k, p, w=None: (s, q, k, mx.full(p.shape, k), w))),
        Fault("prefix one token too long", "language_model", masked(lambda s, q, k, p, w=None: (s, q, k, p + (q == k), w))),
        Fault("left padding off by one", "language_model", padded(lambda padding: None if padding is None else padding - 1)),
        Fault("left padding attended", "language_model", padded(lambda padding: None)),
        Fault("no window", "language_model", masked(lambda s, q, k, p, w=None: (s, q, k, p)), (2,)),
        Fault("window one key too wide", "language_model", masked(lambda s, q, k, p, w=None: (s, q, k, p, w and w + 1)), (2,)),
        Fault("window one key too narrow", "language_model", masked(lambda s, q, k, p, w=None: (s, q, k, p, w and w - 1)), (2,)),
        Fault("window over the prefix too", "language_model", windowed_prefix, (2,)),
    ]


def _cache_and_head() -> list[Fault]:
    def late_positions(patch, model):
        call = gemma.GemmaModel.__call__

        def decode_late(self, x, padding=None, prefix_length=None, cache=None):
            late = int(cache is not None and cache.offset > 0)
            for layer in self.layers:
                layer.self_attn.rope = _Shifted(layer.self_attn.rope, late)
            out = call(self, x, padding, prefix_length, cache)
            for layer in self.layers:
                layer.self_attn.rope = layer.self_attn.rope.rope
            return out

        patch.setattr(gemma.GemmaModel, "__call__", decode_late)

    def overwritten(patch, model):
        update = kv_cache.LayerCache.update

        def early(self, keys, values):
            before = self.offset
            update(self, keys, values)
            if before:
                self.keys[:, :, before - 1 : self.offset - 1] = keys
                self.values[:, :, before - 1 : self.offset - 1] = values
            return self.keys[:, :, : self.offset], self.values[:, :, : self.offset]

        patch.setattr(kv_cache.LayerCache, "update", early)

    def no_cap(patch, model):
        patch.setattr(paligemma.PaliGemma, "logits", lambda self, hidden: self.language_model.embed_tokens.as_linear(hidden))

    def no_norm(patch, model):
        model.language_model.norm.weight = mx.zeros_like(model.language_model.norm.weight)

    return [
        Fault("final norm without its weight", "language_model.norm", no_norm),
        Fault("decoded tokens one position late", "language_model", late_positions),
        Fault("logits without a cap", "logits", no_cap, (2,)),
        Fault("cache written one column early", f"{ATTENTION}", overwritten),
    ]


class _Shifted:
    """A rotary module whose positions are late by a constant."""

    def __init__(self, rope, late):
        self.rope, self.late = rope, late

    def __call__(self, x, offset):
        return self.rope(x, offset + self.late)


def _mapped(tree, change):
    if isinstance(tree, dict):
        return {key: _mapped(value, change) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_mapped(value, change) for value in tree]
    return change(tree)
