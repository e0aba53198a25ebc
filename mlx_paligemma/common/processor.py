"""Pictures and prompts to the arrays that a model reads, ragged batches included.

Source: PaliGemma, arXiv:2407.07726, figure 2. A row is [padding][image tokens][bos][prefix][newline], then in training
[suffix][eos]. Rows are padded at the left, so that all of them end in the same column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np

from .config import PaliGemmaConfig
from .errors import PromptError
from .grammar import Grammar, build_grammar
from .image import ImageSource, open_image, pixel_values
from .locations import MaskDecoder, MaskEncoder
from .tokenizer import PaliGemmaTokenizer, check_vocabulary

IGNORED = -100  # label of a position that is not trained
ImageRow = ImageSource | Sequence[ImageSource]  # what one prompt is about


@dataclass(frozen=True)
class ModelInputs:
    """One batch. B rows, L tokens, I pictures per row (rows with fewer are filled with grey ones that no token reads)."""

    input_ids: np.ndarray  # int32 [B, L]
    pixel_values: np.ndarray  # float32 [B, I, height, width, 3] in [-1, 1]
    padding: np.ndarray | None = None  # int32 [B], columns of left padding; None: nowhere any
    prefix_length: np.ndarray | None = None  # int32 [B], tokens before the suffix, image tokens included; None: no suffix
    labels: np.ndarray | None = None  # int32 [B, L], the token itself where it is a target, else -100; None: no suffix
    pictures: np.ndarray | None = None  # int32 [B], pictures of each row; None: I everywhere

    @property
    def attention_mask(self) -> np.ndarray:
        """int32 [B, L], 1 on tokens and 0 on padding, as transformers wants it."""
        padding = 0 if self.padding is None else self.padding[:, None]
        return np.broadcast_to(self._columns >= padding, self.input_ids.shape).astype(np.int32)

    @property
    def token_type_ids(self) -> np.ndarray:
        """int32 [B, L], 1 on the suffix and 0 elsewhere, as transformers wants it."""
        if self.prefix_length is None:
            return np.zeros_like(self.input_ids)
        padding = 0 if self.padding is None else self.padding
        return (self._columns >= (padding + self.prefix_length)[:, None]).astype(np.int32)

    @property
    def _columns(self) -> np.ndarray:
        return np.arange(self.input_ids.shape[1])[None]


class PaliGemmaProcessor:
    """Knows a checkpoint's picture size, image token and vocabulary, and how to decode and encode its masks."""

    def __init__(
        self,
        config: PaliGemmaConfig,
        tokenizer: PaliGemmaTokenizer,
        decode_masks: MaskDecoder | None = None,
        encode_masks: MaskEncoder | None = None,
    ):
        """The mask functions come from the backend that loaded the checkpoint; None where the folder has no mask codec.

        Raises:
            CheckpointError: the configuration and the vocabulary do not belong together.
        """
        check_vocabulary(tokenizer, config)
        self.config, self.tokenizer = config, tokenizer
        self.decode_masks, self.encode_masks = decode_masks, encode_masks

    @cached_property
    def grammar(self) -> Grammar:
        """The form of answers about places, for this vocabulary."""
        return build_grammar(self.tokenizer, self.config.text.vocab_size)

    def __call__(
        self,
        images: Sequence[ImageRow],
        prompts: Sequence[str],
        suffixes: Sequence[str] | None = None,
    ) -> ModelInputs:
        """Arrays for one batch; `images[b]` is a picture or a list of pictures for `prompts[b]`.

        Raises:
            ImageError: a picture cannot be read.
            PromptError: a prompt is empty or too long, a row has no picture, or the lists differ in length.
        """
        rows = picture_rows(images)
        _check_batch(rows, prompts, suffixes)
        prefixes = [self._prefix(prompt, len(row)) for prompt, row in zip(prompts, rows, strict=True)]
        counts = np.array([len(row) for row in rows], dtype=np.int32)
        return replace(self._pad(prefixes, suffixes, self._pixels(rows)), pictures=counts)

    def check_prompt(self, prompt: str, pictures: int = 1) -> None:
        """Raises PromptError where a prompt about so many pictures is empty or too long. Needs no weights."""
        self._prefix(prompt, pictures)

    def text_inputs(self, pairs: Sequence[tuple[str, str]]) -> ModelInputs:
        """The text side of a training batch of (prefix, suffix), each with one picture; `pixel_values` is empty [B, 0, ...]."""
        size = self.config.vision.image_size
        prefixes = [self._prefix(prefix, 1) for prefix, _ in pairs]
        return self._pad(prefixes, [suffix for _, suffix in pairs], np.zeros((len(pairs), 0, size, size, 3), dtype=np.float32))

    def _prefix(self, prompt: str, pictures: int) -> list[int]:
        text = prompt.strip()
        if not text:
            raise PromptError("the prompt is empty; try 'caption en', 'detect cat' or a question")
        image_tokens = [self.config.image_token_index] * (pictures * self.config.vision.num_patches)
        ids = image_tokens + self.tokenizer.encode_prefix(text)
        self._check_length("the prompt and its pictures", len(ids), self.config.text.max_position_embeddings - 1)
        return ids

    def _check_length(self, what: str, length: int, longest: int) -> None:
        if length > longest:
            room = self.config.text.max_position_embeddings
            raise PromptError(f"{what} make {length} tokens; the model's context holds {room}: shorten it")

    def _pixels(self, rows: list[list[ImageSource]]) -> np.ndarray:
        size = self.config.vision.image_size
        pixels = np.zeros((len(rows), max(map(len, rows)), size, size, 3), dtype=np.float32)
        for b, row in enumerate(rows):
            for i, image in enumerate(row):
                pixels[b, i] = pixel_values(open_image(image), size)
        return pixels

    def _pad(self, prefixes: list[list[int]], suffixes: Sequence[str] | None, pixels: np.ndarray) -> ModelInputs:
        ends: list[list[int]] = (
            [[] for _ in prefixes] if suffixes is None else [self.tokenizer.encode_suffix(text) for text in suffixes]
        )
        lengths = np.array([len(a) + len(b) for a, b in zip(prefixes, ends, strict=True)], dtype=np.int32)
        self._check_length("a prompt, its pictures and its suffix", int(lengths.max()), self.config.text.max_position_embeddings)
        padding = lengths.max() - lengths
        input_ids = np.full((len(lengths), lengths.max()), self.config.pad_token_id, dtype=np.int32)
        labels = np.full_like(input_ids, IGNORED)
        for b, (prefix, end) in enumerate(zip(prefixes, ends, strict=True)):
            input_ids[b, padding[b] :] = prefix + end
            labels[b, padding[b] + len(prefix) :] = end
        return ModelInputs(
            input_ids,
            pixels,
            padding if padding.any() else None,
            None if suffixes is None else np.array([len(prefix) for prefix in prefixes], dtype=np.int32),
            None if suffixes is None else labels,
        )


def _check_batch(rows: Sequence[list[ImageSource]], prompts: Sequence[str], suffixes: Sequence[str] | None) -> None:
    for name, texts in (("prompts", prompts), ("suffixes", suffixes or [])):
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise PromptError(f"{name} must be a list of texts, one for each row")
    if len(rows) != len(prompts) or not prompts:
        raise PromptError(f"{len(rows)} pictures do not match {len(prompts)} prompts; give one prompt per picture")
    if suffixes is not None and len(suffixes) != len(prompts):
        raise PromptError(f"{len(suffixes)} suffixes do not match {len(prompts)} prompts; give one suffix per prompt")
    if not all(rows):
        raise PromptError("a prompt has no picture; PaliGemma needs at least one")


def picture_rows(images: Sequence[ImageRow]) -> list[list[ImageSource]]:
    """Every row as a list, also where it is a single picture. Raises PromptError where `images` itself is a single picture."""
    if not isinstance(images, (list, tuple)):
        raise PromptError("images must be a list, with a picture or a list of pictures for each prompt")
    return [list(row) if isinstance(row, (list, tuple)) else [cast(ImageSource, row)] for row in images]
