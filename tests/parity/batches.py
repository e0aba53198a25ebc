"""Batches of random pictures and tokens in every shape that PaliGemma allows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from checkpoints import IMAGE_TOKEN

from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.common.processor import IGNORED, ModelInputs

# Text tokens of each prefix, of each suffix (None: no suffixes), pictures of each row (default 1).
BATCHES = {
    "one row": ((7,), None, ()),
    "one row with a suffix": ((7,), (6,), ()),
    "a prompt shorter than the window": ((2,), None, ()),
    "rows of one length": ((6, 6), (4, 4), ()),
    "three rows of unlike lengths": ((12, 9, 5), None, ()),
    "three rows of unlike lengths with suffixes": ((12, 9, 5), (9, 4, 12), ()),
    "rows whose suffixes alone differ": ((6, 6, 6), (1, 5, 3), ()),
    "two pictures per row": ((5, 5), None, (2, 2)),
    "one, three and two pictures": ((8, 3, 6), None, (1, 3, 2)),
    "one, three and two pictures with suffixes": ((8, 3, 6), (5, 9, 2), (1, 3, 2)),
    "a suffix much longer than the window": ((4, 8), (40, 33), ()),
}


def random_inputs(
    config: PaliGemmaConfig,
    prefixes: tuple[int, ...],
    suffixes: tuple[int, ...] | None = None,
    pictures: tuple[int, ...] = (),
    seed: int = 0,
) -> ModelInputs:
    """A batch of random pictures and tokens: text tokens of each prefix and suffix, and pictures of each row (default 1)."""
    rng = np.random.default_rng(seed)
    pictures = pictures or (1,) * len(prefixes)
    heads = [count * config.vision.num_patches + text for count, text in zip(pictures, prefixes, strict=True)]
    lengths = np.array(heads) + np.array(suffixes or [0] * len(heads))
    ids = rng.integers(3, IMAGE_TOKEN, (len(heads), lengths.max())).astype(np.int32)
    padding = (lengths.max() - lengths).astype(np.int32)
    labels = np.full_like(ids, IGNORED)
    for row, (left, count, head) in enumerate(zip(padding, pictures, heads, strict=True)):
        ids[row, :left] = config.pad_token_id
        ids[row, left : left + count * config.vision.num_patches] = config.image_token_index
        labels[row, left + head :] = ids[row, left + head :]
    size = config.vision.image_size
    pixels = rng.uniform(-1, 1, (len(heads), max(pictures), size, size, 3)).astype(np.float32)
    return ModelInputs(
        ids,
        pixels,
        padding if padding.any() else None,
        None if suffixes is None else np.array(heads, dtype=np.int32),
        None if suffixes is None else labels,
    )


def tokens(inputs: ModelInputs) -> np.ndarray:
    """bool [B, L], True where there is no padding."""
    return inputs.attention_mask.astype(bool)


def with_suffix(inputs: ModelInputs, suffix: np.ndarray) -> ModelInputs:
    """The same prompts followed by the tokens [B, T]."""
    lengths = inputs.attention_mask.sum(1).astype(np.int32)
    return replace(inputs, input_ids=np.concatenate([inputs.input_ids, suffix], axis=1), prefix_length=lengths)


def random_suffix(rows: int, length: int) -> np.ndarray:
    return np.random.default_rng(5).integers(3, IMAGE_TOKEN, (rows, length)).astype(np.int32)
