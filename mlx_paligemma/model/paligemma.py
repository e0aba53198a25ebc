"""PaliGemma: SigLIP, one linear layer, Gemma. MLX. Mirror of torch_ref/paligemma.py.

Papers: PaliGemma, arXiv:2407.07726; PaliGemma 2, arXiv:2412.03555.
Axes: B rows, I pictures per row, P patches per picture, L tokens, D text hidden_size, V vocabulary rows.
A row is [padding][I * P image tokens][bos][prefix][newline][suffix][eos].
"""

import mlx.core as mx
import mlx.nn as nn

from ..common.config import PaliGemmaConfig
from .gemma import GemmaModel, soft_cap
from .kv_cache import KVCache
from .siglip import SiglipVisionModel


class MultiModalProjector(nn.Module):
    """Patch vectors to the text model's width."""

    def __init__(self, config: PaliGemmaConfig):
        super().__init__()
        self.linear = nn.Linear(config.vision.hidden_size, config.projection_dim)

    def __call__(self, x: mx.array) -> mx.array:
        """[B, P, vision hidden_size] -> [B, P, D]."""
        return self.linear(x)


class PaliGemma(nn.Module):
    """The whole model. Image rows enter the text model as the projector gives them; only text rows are scaled."""

    def __init__(self, config: PaliGemmaConfig):
        super().__init__()
        self.config = config
        self.vision_tower = SiglipVisionModel(config.vision)
        self.multi_modal_projector = MultiModalProjector(config)
        self.language_model = GemmaModel(config.text)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.text.hidden_size, config.text.vocab_size, bias=False)

    def encode_images(self, pixel_values: mx.array) -> mx.array:
        """[B, I, height, width, 3] in [-1, 1] -> image rows [B, I * P, D]."""
        features = self.multi_modal_projector(self.vision_tower(pixel_values.flatten(0, 1)))
        return mx.unflatten(features, 0, pixel_values.shape[:2]).flatten(1, 2)

    def embed(self, input_ids: mx.array, image_rows: mx.array) -> mx.array:
        """Int [B, L] and image rows [B, I * P, D] -> [B, L, D]: the n-th image token of a row takes its n-th image row."""
        is_image = input_ids == self.config.image_token_index
        text = self.language_model.embed(input_ids)
        index = mx.maximum(is_image.astype(mx.int32).cumsum(1) - 1, 0)[..., None]
        return mx.where(is_image[..., None], mx.take_along_axis(image_rows.astype(text.dtype), index, axis=1), text)

    def logits(self, hidden: mx.array) -> mx.array:
        """[B, S, D] -> [B, S, V]: the embedding table, or a head of its own, and Gemma 2's soft cap."""
        logits = self.language_model.embed_tokens.as_linear(hidden) if self.config.tie_word_embeddings else self.lm_head(hidden)
        cap = self.config.text.final_logit_softcapping
        return logits if cap is None else soft_cap(logits, cap)

    def __call__(
        self, input_ids: mx.array, pixel_values: mx.array, padding: mx.array | None = None, prefix_length: mx.array | None = None
    ) -> mx.array:
        """Logits [B, L, V] of every position.

        input_ids int [B, L]; pixel_values float [B, I, height, width, 3]; padding int [B], columns of left padding, or
        None; prefix_length int [B], tokens before the suffix (image tokens included), or None where there is no suffix.
        """
        x = self.embed(input_ids, self.encode_images(pixel_values))
        return self.logits(self.language_model(x, padding, prefix_length))

    def prefill(self, input_ids: mx.array, image_rows: mx.array, cache: KVCache) -> mx.array:
        """Run the prefix [B, L] through the empty cache; logits [B, 1, V] of its last position."""
        hidden = self.language_model(self.embed(input_ids, image_rows), cache.padding, None, cache)
        return self.logits(hidden[:, -1:])

    def decode(self, input_ids: mx.array, cache: KVCache) -> mx.array:
        """Run the next suffix tokens [B, S] through the filled cache; logits [B, S, V]."""
        return self.logits(self.language_model(self.language_model.embed(input_ids), cache.padding, None, cache))
