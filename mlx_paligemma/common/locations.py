"""Locations in the model's text: `<loc0243><loc0507><loc0861><loc0978> cat ; ...` and boxes, both ways.

Source: PaliGemma, arXiv:2407.07726, section 3; masks: All in Tokens, arXiv:2301.02229.
A location is four bins y0 x0 y1 x1 of 0..1023 over the picture's height and width, then 16 seg codes where a mask was asked
for, then a label. Objects are separated by " ; ".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from .errors import PromptError
from .mask_codec import MASK_SIZE
from .results import Detection, Detections
from .tokenizer import LOC_TOKENS, NUM_LOC, NUM_SEG, SEG_TOKENS

MaskDecoder = Callable[[np.ndarray], np.ndarray]  # codes int [n, 16] -> masks float32 [n, 64, 64], about -1 outside and 1 inside
MaskEncoder = Callable[[np.ndarray], np.ndarray]  # masks float32 [n, 64, 64] in [0, 1] -> codes int [n, 16]
CODES_PER_MASK = 16
NEAR = 16  # bins to either side that count as the same place: 1/64 of the picture
BINS = NUM_LOC  # a bin is a coordinate times this; big_vision's evaluation uses 1023
_OBJECT = re.compile(r"((?:<loc[0-9]{4}>){4})\s*((?:<seg[0-9]{3}>){16})?(?:<seg[0-9]{3}>)*([^<>;]*)")
_LOCS = re.compile(r"(?:<loc[0-9]{4}>)+")


@dataclass(frozen=True)
class Location:
    """One object of an answer. box is (x0, y0, x1, y1) in fractions of width and height; codes are its 16 mask codes, or none."""

    label: str
    box: tuple[float, float, float, float]
    codes: tuple[int, ...] = ()
    offset: int = field(default=0, compare=False)  # characters of the answer before its first loc token


def parse_locations(text: str, bins: int = BINS) -> list[Location]:
    """The complete objects in an answer. A bin decodes as bin / bins; empty, reversed and out-of-range boxes are left out.

    bins is 1024, as in Google's demonstration, or 1023, as in big_vision's evaluation: at the far edge that is a difference
    of a thousandth of the picture.
    """
    found = []
    for match in _OBJECT.finditer(text):
        corners, codes = _numbers(match[1]), _numbers(match[2] or "")
        y0, x0, y1, x1 = (value / bins for value in corners)
        if max(corners) < NUM_LOC and max(codes, default=0) < NUM_SEG and y1 > y0 and x1 > x0:
            found.append(Location(match[3].strip(), (x0, y0, x1, y1), codes, match.start()))
    return found


def count_dropped(text: str) -> int:
    """How many objects `parse_locations` leaves out: those refused, and runs of loc tokens that make no whole box."""
    refused = len(_OBJECT.findall(text)) - len(parse_locations(text))
    return refused + len(_LOCS.findall(_OBJECT.sub(" ", text)))


def parse_detections(
    text: str,
    width: int,
    height: int,
    decode_masks: MaskDecoder | None = None,
    *,
    bins: int = BINS,
    nearby: Mapping[int, float] | None = None,
) -> Detections:
    """The objects in an answer about a picture of width x height pixels; without a mask decoder, their boxes alone.

    nearby has, by the characters before each loc token, the probability of the bins around it (see `Detection.score`);
    without it there are no scores.
    """
    found = parse_locations(text, bins)
    masks: dict[int, np.ndarray] = {}
    with_codes = [index for index, location in enumerate(found) if location.codes]
    if with_codes and decode_masks is not None:
        decoded = decode_masks(np.array([found[index].codes for index in with_codes]))
        masks = dict(zip(with_codes, decoded, strict=True))
    items = []
    for index, location in enumerate(found):
        box = _in_pixels(location.box, width, height)
        mask = paste_mask(masks[index], box, width, height) if index in masks else None
        items.append(Detection(location.label, box, _score(location, nearby or {}), mask))
    return Detections(tuple(items), width, height, count_dropped(text))


def format_detections(detections: Detections, encode_masks: MaskEncoder | None = None, *, bins: int = BINS) -> str:
    """The answer that stands for these objects, to write data sets with; masks are encoded where an encoder is given.

    Boxes are cut at the picture's edges. One that is smaller than a bin becomes an object that `parse_detections` leaves out.

    Raises:
        PromptError: a label holds a mark that would end it, a box a number that is none, or a mask is not of the picture.
    """
    parts = []
    for item in detections:
        if item.mask is not None and item.mask.shape != (detections.height, detections.width):
            size = f"{detections.width} x {detections.height}"
            raise PromptError(f"the mask of {item.label!r} is not of the picture's size, {size}; give [height, width] of the whole")
        codes: Sequence[int] = ()
        if item.mask is not None and encode_masks is not None:
            codes = encode_masks(crop_mask(item.mask, item.box)[None])[0].tolist()
        x0, y0, x1, y1 = item.box
        box = (x0 / detections.width, y0 / detections.height, x1 / detections.width, y1 / detections.height)
        parts.append(format_location(box, item.label, codes, bins))
    return " ; ".join(parts)


def paste_mask(mask: np.ndarray, box: Sequence[float], width: int, height: int) -> np.ndarray:
    """A decoded mask [64, 64] stretched over its box (pixels, rounded): bool [height, width], True where it is above 0."""
    x0, y0, x1, y1 = (round(value) for value in box)
    whole = np.zeros((height, width), dtype=bool)
    if x1 > x0 and y1 > y0:
        gray = Image.fromarray(np.rint(np.clip(mask * 0.5 + 0.5, 0, 1) * 255).astype(np.uint8))
        whole[y0:y1, x0:x1] = np.asarray(gray.resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC)) > 127
    return whole


def crop_mask(mask: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """A whole picture's bool mask, cut to a box (pixels, rounded) and stretched for an encoder: float32 [64, 64] in [0, 1]."""
    x0, y0, x1, y1 = (round(value) for value in box)
    cut = np.asarray(mask, dtype=bool)[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
    if not cut.size:
        return np.zeros((MASK_SIZE, MASK_SIZE), dtype=np.float32)
    gray = Image.fromarray(cut.astype(np.uint8) * 255)
    return np.asarray(gray.resize((MASK_SIZE, MASK_SIZE), Image.Resampling.BILINEAR), dtype=np.float32) / 255


def format_location(box: Sequence[float], label: str, codes: Sequence[int] = (), bins: int = BINS) -> str:
    """The text of one object. box is (x0, y0, x1, y1) in fractions; a bin is the nearest, from 0 to 1023.

    Raises:
        PromptError: the label holds a mark that would end it, or the box a number that is none.
    """
    if set(label) & set("<>;"):
        raise PromptError(f"the label {label!r} holds one of < > ; which end a label in PaliGemma's answers; take it out")
    if not all(map(math.isfinite, box)):
        raise PromptError(f"the box {tuple(box)} of {label!r} is not made of finite numbers; mend it")
    x0, y0, x1, y1 = (LOC_TOKENS[min(max(round(value * bins), 0), NUM_LOC - 1)] for value in box)
    return f"{y0}{x0}{y1}{x1}{''.join(SEG_TOKENS[code] for code in codes)} {label}".rstrip()


def _in_pixels(box: tuple[float, float, float, float], width: int, height: int) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box
    return x0 * width, y0 * height, x1 * width, y1 * height


def _score(location: Location, nearby: Mapping[int, float]) -> float | None:
    """The geometric mean over the four loc tokens."""
    offsets = [location.offset + i * len(LOC_TOKENS[0]) for i in range(4)]
    if not all(offset in nearby for offset in offsets):
        return None
    return math.prod(nearby[offset] for offset in offsets) ** 0.25


def _numbers(tokens: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"[0-9]+", tokens))
