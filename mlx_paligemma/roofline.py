"""What a machine cannot beat: FLOPs of the prefill, bytes of a decoded token, and the times they allow.

Computed from a config alone; needs neither MLX nor torch. Counted is what the arithmetic demands: every product of matrices
once, every weight and every cached key and value once per step. Element-wise work and normalisation are left out of the
FLOPs, and activations out of the bytes: together they are below one percent at the released sizes.
Axes: P patches of a picture, S = P + text tokens, D hidden_size, N heads, K key-value heads, H head_dim, V vocabulary rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from .common.config import GemmaConfig, PaliGemmaConfig, SiglipConfig

FLOAT_BYTES = 2  # of activations, caches and unquantised weights, in bfloat16 or float16


@dataclass(frozen=True)
class PrefillWork:
    """FLOPs from pixels and prompt to the first token's logits; a multiplication and an addition count as two."""

    vision_linear: int
    vision_attention: int
    projector: int
    text_linear: int
    text_attention: int
    output_layer: int  # of one row; more rows are waste
    last_layer_trim: int  # of the above, not needed: after its keys and values the last layer has one row to compute

    @property
    def vision(self) -> int:
        """The picture encoder, without the projector."""
        return self.vision_linear + self.vision_attention

    @property
    def text(self) -> int:
        """The text model with all rows in its last layer, and one row of the output layer."""
        return self.text_linear + self.text_attention + self.output_layer

    @property
    def total(self) -> int:
        """All that is needed."""
        return self.vision + self.projector + self.text - self.last_layer_trim


def prefill_work(config: PaliGemmaConfig, text_tokens: int, batch: int = 1, images: int = 1) -> PrefillWork:
    """FLOPs of a prefill of `batch` rows, each of `images` pictures and `text_tokens` tokens."""
    patches, text = config.vision.num_patches, config.text
    tokens, pictures = images * patches + text_tokens, batch * images
    last = layer_weights(text) - _key_value_weights(text)
    return PrefillWork(
        vision_linear=2 * pictures * patches * vision_weights(config.vision),
        vision_attention=4 * pictures * patches**2 * config.vision.hidden_size * config.vision.num_hidden_layers,
        projector=2 * pictures * patches * config.vision.hidden_size * config.projection_dim,
        text_linear=2 * batch * tokens * body_weights(text),
        text_attention=batch * text.num_hidden_layers * _attention(text, tokens, tokens),
        output_layer=2 * batch * embedding_weights(text),
        last_layer_trim=batch * (2 * (tokens - 1) * last + _attention(text, tokens - 1, tokens)),
    )


def decode_bytes(config: PaliGemmaConfig, context: int, bits: float = 16, batch: int = 1) -> float:
    """Bytes read to decode one token in each of `batch` rows that hold `context` tokens.

    `bits` is what a weight of the text model and of the embedding takes (16, 8.5, 6.5 or 4.5); norms and caches take 16.
    """
    text = config.text
    weights = (body_weights(text) + embedding_weights(text)) * bits / 8 + norm_weights(text) * FLOAT_BYTES
    return weights + batch * context * kv_bytes_per_token(text)


def kv_bytes_per_token(text: GemmaConfig) -> int:
    """Bytes of one token's keys and values in all layers."""
    return 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * FLOAT_BYTES


def ttft_bound(work: PrefillWork, flops_per_second: float) -> float:
    """Seconds to the first token at best, on a machine that multiplies matrices at `flops_per_second`."""
    return work.total / flops_per_second


def tokens_per_second_bound(
    config: PaliGemmaConfig, context: int, bytes_per_second: float, bits: float = 16, batch: int = 1
) -> float:
    """Tokens a second at best, of all rows together, on a machine that reads weights at `bytes_per_second`."""
    return batch * bytes_per_second / decode_bytes(config, context, bits, batch)


def vision_weights(vision: SiglipConfig) -> int:
    """Weights in the picture encoder's matrices: patches, attention and MLP."""
    layer = 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size
    return vision.num_channels * vision.patch_size**2 * vision.hidden_size + vision.num_hidden_layers * layer


def body_weights(text: GemmaConfig) -> int:
    """Weights in the matrices of all text layers."""
    return text.num_hidden_layers * layer_weights(text)


def layer_weights(text: GemmaConfig) -> int:
    """Weights in the matrices of one text layer: q, k, v, o, gate, up and down."""
    outer = 2 * text.hidden_size * text.num_attention_heads * text.head_dim
    return outer + _key_value_weights(text) + 3 * text.hidden_size * text.intermediate_size


def embedding_weights(text: GemmaConfig) -> int:
    """Weights in the token embedding, and as many in the output layer."""
    return text.vocab_size * text.hidden_size


def norm_weights(text: GemmaConfig) -> int:
    """Weights of the text model's norms: two a layer, four in Gemma 2, and the last one."""
    per_layer = 4 if text.model_type == "gemma2" else 2
    return (per_layer * text.num_hidden_layers + 1) * text.hidden_size


def _key_value_weights(text: GemmaConfig) -> int:
    return 2 * text.hidden_size * text.num_key_value_heads * text.head_dim


def _attention(text: GemmaConfig, queries: int, keys: int) -> int:
    """FLOPs of one layer's two products, every query with every key: in a prefix nothing is hidden."""
    return 4 * queries * keys * text.num_attention_heads * text.head_dim
