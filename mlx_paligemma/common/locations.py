"""Locations in the model's text: `<loc0243><loc0507><loc0861><loc0978> cat ; ...` and boxes, both ways.

Source: PaliGemma, arXiv:2407.07726, section 3; masks: All in Tokens, arXiv:2301.02229.
A location is four bins y0 x0 y1 x1 of 0..1023 over the picture's height and width, then 16 seg codes where a mask was asked
for, then a label. Objects are separated by " ; ".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .results import Detection
from .tokenizer import LOC_TOKENS, NUM_LOC, NUM_SEG, SEG_TOKENS

MaskDecoder = Callable[[np.ndarray], np.ndarray]  # codes int [n, 16] -> masks float32 [n, 64, 64], about -1 outside and 1 inside
CODES_PER_MASK = 16
_OBJECT = re.compile(r"((?:<loc[0-9]{4}>){4})\s*((?:<seg[0-9]{3}>){16})?([^<>;]*)")


@dataclass(frozen=True)
class Location:
    """One object of an answer. box is (x0, y0, x1, y1) in fractions of width and height; codes are its 16 mask codes, or none."""

    label: str
    box: tuple[float, float, float, float]
    codes: tuple[int, ...] = ()


def parse_locations(text: str) -> list[Location]:
    """The complete objects in an answer. Bins decode as bin / 1024; empty, reversed and out-of-range ones are left out."""
    found = []
    for match in _OBJECT.finditer(text):
        bins, codes = _numbers(match[1]), _numbers(match[2] or "")
        y0, x0, y1, x1 = (value / NUM_LOC for value in bins)
        if max(bins) < NUM_LOC and max(codes, default=0) < NUM_SEG and y1 > y0 and x1 > x0:
            found.append(Location(match[3].strip(), (x0, y0, x1, y1), codes))
    return found


def detections(text: str, width: int, height: int, decode_masks: MaskDecoder | None = None) -> tuple[Detection, ...]:
    """The objects in an answer about a picture of width x height pixels; without a mask decoder, their boxes alone."""
    found = parse_locations(text)
    masks: dict[int, np.ndarray] = {}
    with_codes = [index for index, location in enumerate(found) if location.codes]
    if with_codes and decode_masks is not None:
        decoded = decode_masks(np.array([found[index].codes for index in with_codes]))
        masks = dict(zip(with_codes, decoded, strict=True))
    return tuple(_detection(location, width, height, masks.get(index)) for index, location in enumerate(found))


def paste_mask(mask: np.ndarray, box: Sequence[float], width: int, height: int) -> np.ndarray:
    """A decoded mask [64, 64] stretched over its box (pixels, rounded): bool [height, width], True where it is above 0."""
    x0, y0, x1, y1 = (round(value) for value in box)
    whole = np.zeros((height, width), dtype=bool)
    if x1 > x0 and y1 > y0:
        gray = Image.fromarray(np.rint(np.clip(mask * 0.5 + 0.5, 0, 1) * 255).astype(np.uint8))
        whole[y0:y1, x0:x1] = np.asarray(gray.resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC)) > 127
    return whole


def _detection(location: Location, width: int, height: int, mask: np.ndarray | None) -> Detection:
    x0, y0, x1, y1 = location.box
    box = (x0 * width, y0 * height, x1 * width, y1 * height)
    return Detection(location.label, box, mask=None if mask is None else paste_mask(mask, box, width, height))


def format_location(box: Sequence[float], label: str, codes: Sequence[int] = ()) -> str:
    """The text of one object. box is (x0, y0, x1, y1) in fractions; a bin is the nearest of 1024, at most 1023."""
    x0, y0, x1, y1 = (LOC_TOKENS[min(max(round(value * NUM_LOC), 0), NUM_LOC - 1)] for value in box)
    return f"{y0}{x0}{y1}{x1}{''.join(SEG_TOKENS[code] for code in codes)} {label}".rstrip()


def _numbers(tokens: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"[0-9]+", tokens))
