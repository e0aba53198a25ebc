"""What the processor makes of pictures and prompts, against the same rules written down once more, without its code.

Sources: PaliGemma, arXiv:2407.07726, section 3 (the order of a row); transformers' PaliGemmaProcessor and SiglipImageProcessor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sentencepiece import SentencePieceProcessor

from ..common.config import PaliGemmaConfig
from ..common.processor import ModelInputs
from ..common.tokenizer import PaliGemmaTokenizer
from . import budgets
from .distance import WRONG, Distance, distance, worst_distance
from .report import ModuleParity

PROCESSOR = "processor"  # its name in reports


@dataclass(frozen=True)
class Row:
    """What a row of a batch is made of."""

    pictures: tuple[Image.Image, ...]  # RGB
    prompt: str
    suffix: str | None = None


class InputCheck:
    """For the vocabulary of one checkpoint's folder."""

    def __init__(self, folder: Path, config: PaliGemmaConfig):
        self.pieces = SentencePieceProcessor(model_proto=PaliGemmaTokenizer.from_folder(folder).model)
        self.config = config

    def compare(self, inputs: ModelInputs, rows: Sequence[Row]) -> ModuleParity:
        """Token ids, padding, lengths of the prefixes and pixels; the worst of them."""
        prefixes = [self._prefix(row) for row in rows]
        lists = [prefix + self._suffix(row) for prefix, row in zip(prefixes, rows, strict=True)]
        lengths = None if rows[0].suffix is None else np.array([len(prefix) for prefix in prefixes])
        found = [
            _equal(inputs.input_ids, _left_padded(lists, self.config.pad_token_id)),
            _equal(inputs.attention_mask, _left_padded([[1] * len(ids) for ids in lists], 0)),
            _equal(inputs.prefix_length, lengths),
        ]
        for given, row in zip(inputs.pixel_values, rows, strict=True):
            pixels = np.stack([self._pixels(picture) for picture in row.pictures])
            same = given[: len(pixels)].shape == pixels.shape
            found.append(distance(given[: len(pixels)], pixels) if same else WRONG)
        return ModuleParity(PROCESSOR, inputs.input_ids.shape, "", worst_distance(found), budgets.EXACT)

    def _prefix(self, row: Row) -> list[int]:
        image = [self.config.image_token_index] * (len(row.pictures) * self.config.vision.num_patches)
        bos = self.pieces.piece_to_id("<bos>")
        return [*image, bos, *self.pieces.encode(row.prompt.strip()), self.pieces.piece_to_id("\n")]

    def _suffix(self, row: Row) -> list[int]:
        return [] if row.suffix is None else [*self.pieces.encode(row.suffix), self.config.eos_token_id]

    def _pixels(self, picture: Image.Image) -> np.ndarray:
        side = self.config.vision.image_size
        return np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC)).astype(np.float64) / 127.5 - 1


def _left_padded(lists: list[list[int]], filler: int) -> np.ndarray:
    longest = max(map(len, lists))
    return np.array([[filler] * (longest - len(ids)) + ids for ids in lists])


def _equal(found: np.ndarray | None, wanted: np.ndarray | None) -> Distance:
    """The share of entries that differ, as an error."""
    if found is None or wanted is None or found.shape != wanted.shape:
        return Distance(0.0, 0.0, 1.0) if found is None and wanted is None else WRONG
    differ = float((found != wanted).mean())
    return Distance(differ, float(np.abs(found - wanted).max()), 1 - differ)
