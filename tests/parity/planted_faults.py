"""Errors that ports of PaliGemma have had or could have, each planted into an MLX model with one change.

Many are real: earlier ports and early versions of transformers had them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from PIL import Image

from mlx_paligemma.common import processor
from mlx_paligemma.common.processor import PaliGemmaProcessor
from mlx_paligemma.common.tokenizer import PaliGemmaTokenizer
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


def input_faults() -> list[Fault]:
    """Errors of the processor, before any module runs: `plant` is given None for the model."""

    def merged_newline(patch, _):
        patch.setattr(PaliGemmaTokenizer, "encode_prefix", lambda self, text: [self.bos_token_id, *self.encode(text + "\n\n")[:-1]])

    def no_newline(patch, _):
        patch.setattr(PaliGemmaTokenizer, "encode_prefix", lambda self, text: [self.bos_token_id, *self.encode(text)])

    def no_bos(patch, _):
        encode = PaliGemmaTokenizer.encode_prefix
        patch.setattr(PaliGemmaTokenizer, "encode_prefix", lambda self, text: encode(self, text)[1:])

    def no_eos(patch, _):
        patch.setattr(PaliGemmaTokenizer, "encode_suffix", lambda self, text: self.encode(text))

    def bos_first(patch, _):
        prefix = PaliGemmaProcessor._prefix

        def moved(self, prompt, pictures):
            ids = prefix(self, prompt, pictures)
            ids.remove(self.tokenizer.bos_token_id)
            return [self.tokenizer.bos_token_id, *ids]

        patch.setattr(PaliGemmaProcessor, "_prefix", moved)

    def on_pad(change):
        def plant(patch, _):
            pad = PaliGemmaProcessor._pad
            patch.setattr(PaliGemmaProcessor, "_pad", lambda self, *arguments: change(pad(self, *arguments)))

        return plant

    def right_padding(inputs):
        if inputs.padding is None:
            return inputs
        rows = [np.roll(ids, -left) for ids, left in zip(inputs.input_ids, inputs.padding, strict=True)]
        return replace(inputs, input_ids=np.stack(rows))

    def longer_prefix(inputs):
        return replace(inputs, prefix_length=None if inputs.prefix_length is None else inputs.prefix_length + 1)

    def less_padding(inputs):
        return replace(inputs, padding=None if inputs.padding is None else inputs.padding - 1)

    def first_picture(inputs):
        return replace(inputs, pixel_values=np.broadcast_to(inputs.pixel_values[:1], inputs.pixel_values.shape))

    def plain_range(inputs):
        return replace(inputs, pixel_values=(inputs.pixel_values + 1) / 2)

    def bilinear(patch, _):
        def resized(image, size):
            return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), dtype=np.float32) / 127.5 - 1

        patch.setattr(processor, "pixel_values", resized)

    return [
        Fault("newline merged with the prompt's end", "processor", merged_newline),
        Fault("newline missing", "processor", no_newline),
        Fault("bos missing", "processor", no_bos),
        Fault("eos missing", "processor", no_eos),
        Fault("bos before the image tokens", "processor", bos_first),
        Fault("rows padded at the right", "processor", on_pad(right_padding)),
        Fault("padding counted one short", "processor", on_pad(less_padding)),
        Fault("prefix counted one too long", "processor", on_pad(longer_prefix)),
        Fault("the first row's picture in every row", "processor", on_pad(first_picture)),
        Fault("pixels from 0 to 1", "processor", on_pad(plain_range)),
        Fault("pictures resized bilinearly", "processor", bilinear),
    ]


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

    def half_weight(patch, model):
        def call(self, x):
            scale = (1.0 + self.weight.astype(mx.bfloat16)).astype(mx.float32)
            return mx.fast.rms_norm(x.astype(mx.float32), scale, self.eps).astype(x.dtype)

        patch.setattr(gemma.RMSNorm, "__call__", call)

    def norms_after_the_sum(patch, model):
        def call(self, x, offset, mask, cache):
            x = self.post_attention_layernorm(x + self.self_attn(self.input_layernorm(x), offset, mask, cache))
            return self.post_feedforward_layernorm(x + self.mlp(self.pre_feedforward_layernorm(x)))

        patch.setattr(gemma.Gemma2Layer, "__call__", call)

    def gemma_order(patch, model):
        def call(self, x, offset, mask, cache):
            x = x + self.pre_feedforward_layernorm(self.self_attn(self.input_layernorm(x), offset, mask, cache))
            return x + self.post_feedforward_layernorm(self.mlp(self.post_attention_layernorm(x)))

        patch.setattr(gemma.Gemma2Layer, "__call__", call)

    return [
        Fault("RMS norms with an epsilon of 1e-5", f"{LAYER}.input_layernorm", epsilon),
        Fault("RMS norms with w for 1 + w", f"{LAYER}.input_layernorm", plain_weight),
        Fault("RMS norms with 1 + w rounded to bfloat16", f"{LAYER}.input_layernorm", half_weight),
        Fault("exact GELU in the language model", f"{LAYER}.mlp", exact_gelu),
        Fault("gate and up exchanged", f"{LAYER}.mlp", exchanged),
        Fault("Gemma 2 without the norms after attention and MLP", LAYER, no_sandwich, (2,)),
        Fault("Gemma 2 with its norms after the sums", LAYER, norms_after_the_sum, (2,)),
        Fault("Gemma 2 with two norms exchanged, as Gemma has them", LAYER, gemma_order, (2,)),
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

    def width_scale(patch, model):
        for layer in model.language_model.layers:
            layer.self_attn.scale = (model.config.text.hidden_size / layer.self_attn.num_heads) ** -0.5

    def other_cap(patch, model):
        for layer in model.language_model.layers:
            layer.self_attn.cap = 1.02 * layer.self_attn.cap

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
        Fault("query scale by hidden size over heads", ATTENTION, width_scale),
        Fault("attention scores without a cap", ATTENTION, no_cap, (2,)),
        Fault("attention scores capped at 5.1 for 5", ATTENTION, other_cap, (2,)),
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

    def odd_layers(patch, model):
        kinds = model.config.text.layer_types
        swapped = replace(model.config.text, layer_types=(*kinds[1:], *kinds[:1]))
        model.language_model.config = swapped

    return [
        Fault("causal prefix", "mask", masked(lambda s, q, k, p, w=None: (s, q, k, mx.zeros_like(p), w))),
        Fault("suffix seen by all", "mask", masked(lambda s, q, k, p, w=None: (s, q, k, mx.full(p.shape, k), w))),
        Fault("prefix one token too long", "mask", masked(lambda s, q, k, p, w=None: (s, q, k, p + (q == k), w))),
        Fault("left padding off by one", "mask", padded(lambda padding: None if padding is None else padding - 1)),
        Fault("left padding attended", "mask", padded(lambda padding: None)),
        Fault("no window", "mask", masked(lambda s, q, k, p, w=None: (s, q, k, p)), (2,)),
        Fault("window one key too wide", "mask", masked(lambda s, q, k, p, w=None: (s, q, k, p, w and w + 1)), (2,)),
        Fault("window one key too narrow", "mask", masked(lambda s, q, k, p, w=None: (s, q, k, p, w and w - 1)), (2,)),
        Fault("window on the odd layers", "mask", odd_layers, (2,)),
        Fault("window over the prefix too", "mask", windowed_prefix, (2,)),
    ]


def _cache_and_head() -> list[Fault]:
    def late_positions(patch, model):
        call = gemma.GemmaModel.__call__

        def decode_late(self, x, padding=None, prefix_length=None, cache=None):
            late = int(cache is not None and cache.offset > 0)
            layers, self.layers = self.layers, [_Late(layer, late) for layer in self.layers]
            out = call(self, x, padding, prefix_length, cache)
            self.layers = layers
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

    def own_head(patch, model):
        table = model.language_model.embed_tokens.weight
        head = mx.random.normal(table.shape, scale=0.06, key=mx.random.key(0))

        def logits(self, hidden):
            cap = self.config.text.final_logit_softcapping
            return hidden @ head.T if cap is None else gemma.soft_cap(hidden @ head.T, cap)

        patch.setattr(paligemma.PaliGemma, "logits", logits)

    def no_norm(patch, model):
        model.language_model.norm.weight = mx.zeros_like(model.language_model.norm.weight)

    return [
        Fault("final norm without its weight", "language_model.norm", no_norm),
        Fault("decoded tokens one position late", "positions", late_positions),
        Fault("a head that is not tied to the embedding", "logits", own_head),
        Fault("logits without a cap", "logits", no_cap, (2,)),
        Fault("cache written one column early", "cache", overwritten),
    ]


class _Late:
    """A layer that is told positions late by a constant."""

    def __init__(self, layer, late):
        self.layer, self.late = layer, late

    def __call__(self, x, offset, mask, cache):
        return self.layer(x, offset + self.late, mask, cache)


def _mapped(tree, change):
    if isinstance(tree, dict):
        return {key: _mapped(value, change) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_mapped(value, change) for value in tree]
    return change(tree)
