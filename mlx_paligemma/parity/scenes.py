"""What a comparison runs: the user's picture and prompt alone, and in a padded batch with another row and with suffixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from ..common.config import PaliGemmaConfig
from ..common.mask_codec import GRID, MASK_SIZE
from ..common.processor import ModelInputs, PaliGemmaProcessor
from .input_check import Row

OTHER_PROMPTS = ("caption en", "answer en what is in the picture?")  # one of them has another length than the user's
SUFFIXES = ("a red star", "<loc0100><loc0200><loc0700><loc0800> star ; <loc0300><loc0400><loc0500><loc0600> circle")
CHUNKS = (1, 1, 3)  # new tokens of each decoding step: one is the usual, several take another mask
WHOLE_LIMIT = 1 << 27  # logits that are made at once; more are made piece by piece
PIECE = 64  # positions of such a piece


@dataclass(frozen=True)
class Scenes:
    """The inputs of all runs."""

    rows: tuple[Row, ...]  # of the batch
    single: ModelInputs  # the user's picture and prompt
    batch: ModelInputs  # with suffixes, as in training
    prompts: ModelInputs  # the same rows without
    decoded: np.ndarray  # int32 [B, 5], tokens that follow the prompts

    @property
    def chunks(self) -> list[np.ndarray]:
        """The decoded tokens, step by step."""
        return np.split(self.decoded, np.cumsum(CHUNKS)[:-1], axis=1)


def build_scenes(processor: PaliGemmaProcessor, pictures: Sequence[Image.Image], prompt: str, padded: bool = True) -> Scenes:
    """The batch has a second row, mirrored pictures with another prompt, so that one is padded; or not, which takes half.

    Raises:
        PromptError: the prompt is empty or too long.
    """
    rows, prompts, suffixes = [list(pictures)], [prompt], list(SUFFIXES[:1])
    single = processor(rows, prompts)
    if padded:
        length = len(processor.tokenizer.encode_prefix(prompt.strip()))
        others = [text for text in OTHER_PROMPTS if len(processor.tokenizer.encode_prefix(text)) != length]
        rows.append([ImageOps.mirror(picture) for picture in pictures])
        prompts, suffixes = [prompt, others[0]], list(SUFFIXES)
    tokens = processor.tokenizer.encode_suffix(SUFFIXES[1])[: sum(CHUNKS)]
    decoded = np.array([np.roll(tokens, row) for row in range(len(rows))], dtype=np.int32)
    described = tuple(Row(tuple(row), *texts) for row, *texts in zip(rows, prompts, suffixes, strict=True))
    return Scenes(described, single, processor(rows, prompts, suffixes), processor(rows, prompts), decoded)


def fits_whole(inputs: ModelInputs, config: PaliGemmaConfig) -> bool:
    """Whether the logits of all positions may be in memory at once."""
    return inputs.input_ids.size * config.text.vocab_size <= WHOLE_LIMIT


def codec_inputs(codes: int) -> tuple[np.ndarray, np.ndarray]:
    """Masks float32 [2, 64, 64, 1] of squares, and each code once, int32 [codes / 16, 16]."""
    draw = np.random.default_rng(2)
    squares = draw.uniform(0, 1, (2, MASK_SIZE // 8, MASK_SIZE // 8, 1)).astype(np.float32)
    order = draw.permutation(codes - codes % GRID**2).reshape(-1, GRID**2).astype(np.int32)
    return squares.repeat(8, axis=1).repeat(8, axis=2), order
