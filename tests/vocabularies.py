"""Vocabularies and texts for the tests of everything that reads or writes a vocabulary."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest
from checkpoints import vocabulary
from sentencepiece import SentencePieceProcessor

from mlx_paligemma.common.hub import bundled_checkpoint

ROOT = Path(__file__).parent.parent
REAL = ROOT / "runs" / "vocabulary" / "tokenizer.model"
NAMES = ("tiny", "demo", "real")
FRAGMENTS = (
    *(" " * n for n in (1, 2, 3, 31, 32, 40)), *("\n" * n for n in (1, 2, 3, 4, 31, 40)),
    " \n", "\t", "\t\t\t", "\r\n", "\x00", "\x7f",
    "caption", " en", "detect cat ; dog", "<loc0000>", "<loc0012><loc1023>", "<seg000>", "<seg127>",
    "<loc12>", "<LOC0012>", "<loc", "<mask>", "<<mask>>", "<b>", "</b>", "<unused7>", "<0x41>", "<", ">",
    "0", "12345", "a", "aaa", "abab", "=====", "-=-=-",
    "é", "e\u0301", "ﬁ", "Å", "漢字", "日本語", "ال", "हिन्दी", "𝔢", "\U0010fffd",
    "\u200d", "\u2581", "\u2581\u2581", "\ufffd", "\ufeff", "😀", "👩‍👩‍👧", "🇨🇭",
)  # fmt: skip


@cache
def model_of(name: str) -> bytes:
    """A serialised SentencePiece model; skips the test where the real one has not been built."""
    if name == "tiny":
        return vocabulary()
    if name == "demo":
        return (bundled_checkpoint() / "tokenizer.model").read_bytes()
    if not REAL.exists():
        pytest.skip(f"{REAL.relative_to(ROOT)} is not there: run `make vocabulary` first")
    return REAL.read_bytes()


@cache
def sentencepiece(model: bytes) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_proto=model)


def texts(model: bytes, count: int) -> list[str]:
    """The empty text, and texts of up to twelve fragments and pieces."""
    rng, pieces = random.Random(0), sentencepiece(model)
    words = [pieces.id_to_piece(i).replace("\u2581", " ") for i in range(4, pieces.get_piece_size()) if not pieces.is_byte(i)]
    return ["", *("".join(rng.choice(rng.choice((FRAGMENTS, words))) for _ in range(rng.randrange(1, 12))) for _ in range(count))]
