"""Boxes, masks and labels on a copy of the picture. Lines and letters grow with the picture."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .results import Detection

PALETTE = ((230, 25, 75), (0, 130, 200), (60, 180, 75), (245, 130, 48), (145, 30, 180), (0, 128, 128), (170, 110, 40), (128, 0, 0))
MASK_OPACITY = 0.45


def draw_detections(image: Image.Image, detections: Sequence[Detection]) -> Image.Image:
    """A copy of an RGB picture with every detection drawn. A label always has the same colour."""
    drawn = image
    for detection in detections:
        if detection.mask is not None:
            drawn = _tint(drawn, detection.mask, label_color(detection.label))
    drawn = drawn.copy()
    for detection in detections:
        _draw_box(ImageDraw.Draw(drawn), detection, drawn.size)
    return drawn


def label_color(label: str) -> tuple[int, int, int]:
    """The colour of a label, the same in every picture and every run."""
    return PALETTE[zlib.crc32(label.encode()) % len(PALETTE)]


def _tint(image: Image.Image, mask: np.ndarray, color: tuple[int, int, int]) -> Image.Image:
    opacity = Image.fromarray(mask.astype(np.uint8) * round(255 * MASK_OPACITY))
    return Image.composite(Image.new("RGB", image.size, color), image, opacity)


def _draw_box(canvas: ImageDraw.ImageDraw, detection: Detection, size: tuple[int, int]) -> None:
    line = max(1, round(max(size) / 250))
    color = label_color(detection.label)
    x0, y0, x1, y1 = (round(value) for value in detection.box)
    canvas.rectangle((x0 - line, y0 - line, x1 + line, y1 + line), outline="white", width=line)  # seen on dark pictures
    canvas.rectangle((x0, y0, x1, y1), outline=color, width=line)
    text = detection.label if detection.score is None else f"{detection.label} {detection.score:.2f}"
    if text:
        _draw_label(canvas, text, (x0, y0), color, size)


def _draw_label(
    canvas: ImageDraw.ImageDraw, text: str, corner: tuple[int, int], color: tuple[int, int, int], size: tuple[int, int]
) -> None:
    """White letters on a coloured strip above the box, moved inside the picture where it would stick out."""
    font = ImageFont.load_default(max(9, max(size) / 32))
    left, top, right, bottom = font.getbbox(text)
    pad = round((bottom - top) / 3)
    width, height = round(right - left) + 2 * pad, round(bottom - top) + 2 * pad
    x = max(min(corner[0], size[0] - width), 0)
    y = max(corner[1] - height, 0)
    canvas.rectangle((x, y, x + width, y + height), fill=color)
    canvas.text((x + pad - left, y + pad - top), text, fill="white", font=font)
