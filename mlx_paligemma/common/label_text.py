"""What a drawn label says, and the letters it says it in."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator

from PIL import ImageFont
from PIL.ImageFont import FreeTypeFont

from .results import Detection

WIDE_FONTS = ("Arial Unicode.ttf", "DejaVuSans.ttf", "NotoSans-Regular.ttf", "arial.ttf")  # macOS, Linux, Linux, Windows
MIN_LETTERS, MAX_LETTERS = 2, 100  # of a label that is cut


def label_font(labels: Iterable[str], size: float) -> FreeTypeFont:
    """Pillow's own font, the same on every machine; as it has ASCII letters only, the system's font if others are wanted."""
    if not all(label.isascii() for label in labels):
        for name in WIDE_FONTS:
            try:
                return ImageFont.truetype(name, size)
            except OSError:  # this system has no such font
                continue
    return _own_font(size)


def label_texts(detection: Detection, font: FreeTypeFont) -> Iterator[str]:
    """What the label may say, longest first: with the score, without it, cut at its end. Nothing to say, nothing given."""
    label = _one_line(detection.label)
    if font.getname() == _own_font(font.size).getname():
        label = _ascii(label)
    label = label if len(label) <= MAX_LETTERS else _cut(label, MAX_LETTERS)
    score = "" if detection.score is None else f"{detection.score:.2f}"
    yield from dict.fromkeys(text for text in (f"{label} {score}".strip(), label or score) if text)
    for letters in range(len(label) - 1, MIN_LETTERS - 1, -1):
        yield _cut(label, letters)


def _cut(label: str, letters: int) -> str:
    return f"{label[:letters].rstrip()}…"


def _own_font(size: float) -> FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, FreeTypeFont)  # Pillow promises it where a size is given
    return font


def _one_line(label: str) -> str:
    """Without line breaks, control characters and halves of surrogate pairs, which no font can draw."""
    printable = "".join(letter if letter.isprintable() else " " for letter in label)
    return " ".join(printable.split())


def _ascii(label: str) -> str:
    """Accents taken off; letters that still are not ASCII become question marks."""
    bare = "".join(letter for letter in unicodedata.normalize("NFKD", label) if not unicodedata.combining(letter))
    return bare.encode("ascii", errors="replace").decode()
