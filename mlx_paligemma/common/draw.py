"""Boxes, masks and labels on a copy of the picture. Lines and letters grow with the picture.

Every colour comes with an ink, white or black, that can be told from it. Lines have a thin edge of ink and labels are
written in it, so that one of the two is seen on any background.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps
from PIL.ImageFont import FreeTypeFont

from .errors import ImageError
from .label_layout import LabelLayout, Rectangle
from .label_text import label_font, label_texts
from .results import Detection

Color = tuple[int, int, int]

WHITE, BLACK = (255, 255, 255), (0, 0, 0)
PALETTE = (
    (220, 20, 60), (0, 110, 190), (30, 130, 60), (245, 130, 48), (145, 30, 180), (66, 212, 244), (255, 225, 25), (240, 50, 230),
    (0, 128, 128), (190, 240, 70), (170, 80, 20), (0, 0, 140), (255, 150, 180), (128, 0, 0), (120, 240, 180), (90, 80, 220),
)  # fmt: skip
MASK_OPACITY = 0.45
MIN_FONT_SIZE = 9.0  # pixels; smaller letters of Pillow's font cannot be read
FONTS_PER_SIDE = 32  # side of the picture / height of the letters


def draw_detections(image: Image.Image, detections: Sequence[Detection]) -> Image.Image:
    """An RGB copy of the picture with every detection drawn: masks, then boxes, then labels, large ones below small ones.

    Raises:
        ImageError: a mask has another size than the picture.
    """
    drawn = image.convert("RGB")
    side = math.sqrt(image.width * image.height)  # pixels; unlike width or height it suits pictures of any shape
    line = max(1, round(side / 250))
    colors = label_colors(detection.label for detection in detections)
    large_first = sorted(detections, key=_area, reverse=True)
    for detection in large_first:
        if detection.mask is not None:
            _draw_mask(drawn, detection.mask, colors[detection.label], line)
    outlines = [_draw_box(drawn, detection, colors[detection.label], line) for detection in large_first]
    _draw_labels(drawn, large_first, outlines, colors, side)
    return drawn


def label_color(label: str) -> Color:
    """The label's own colour, the same in every picture and every run."""
    return PALETTE[_palette_index(label)]


def label_colors(labels: Iterable[str]) -> dict[str, Color]:
    """A colour for each label: its own or, where another label of the picture has that one, the next that is free.

    The order of the labels does not matter. Colours repeat only where there are more labels than colours.
    """
    colors: dict[str, Color] = {}
    for label in sorted(set(labels)):
        start = _palette_index(label)
        turned = PALETTE[start:] + PALETTE[:start]
        taken = [*colors.values()]
        colors[label] = min(turned, key=taken.count)
    return colors


def ink(color: Color) -> Color:
    """White or black, whichever can be read on the colour (WCAG 2 contrast of 4.5 or more on the whole palette)."""
    linear = [(value / 255 / 12.92) if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in color]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return BLACK if luminance > 0.18 else WHITE


def _palette_index(label: str) -> int:
    return zlib.crc32(label.encode(errors="replace")) % len(PALETTE)


def _area(detection: Detection) -> float:
    x0, y0, x1, y1 = detection.box
    return (x1 - x0) * (y1 - y0)


def _draw_mask(drawn: Image.Image, mask: NDArray[np.bool_], color: Color, line: int) -> None:
    """A tint with an outline inside it. Only the part of the picture that holds the mask is touched: large pictures are slow."""
    if mask.shape != (drawn.height, drawn.width):
        size = f"{mask.shape[1]} x {mask.shape[0]}, the picture {drawn.width} x {drawn.height}"
        raise ImageError(f"a mask is {size}; draw on the picture that the objects were found in")
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return
    mask = mask[rows[0] : rows[-1] + 1]
    columns = np.flatnonzero(mask.any(axis=0))
    corner = (int(columns[0]), int(rows[0]))
    whole = Image.fromarray(mask[:, columns[0] : columns[-1] + 1].astype(np.uint8) * 255)
    inner = _shrunk(whole, _edge(line))
    tinted = _shrunk(inner, line).point(lambda value: round(value * (1 - MASK_OPACITY)))
    drawn.paste(ink(color), corner, ImageChops.subtract(whole, inner))
    drawn.paste(color, corner, ImageChops.subtract(inner, tinted))


def _shrunk(mask: Image.Image, pixels: int) -> Image.Image:
    """The mask, 0 and 255, without the pixels nearer than this to its border. A box blur takes the same time for any width."""
    blurred = ImageOps.expand(mask, pixels).filter(ImageFilter.BoxBlur(pixels))
    return ImageOps.crop(blurred, pixels).point(lambda value: 255 if value == 255 else 0)


def _edge(line: int) -> int:
    return max(1, line // 3)


def _draw_box(drawn: Image.Image, detection: Detection, color: Color, line: int) -> Rectangle:
    """Lines around the box, moved inside where they would leave the picture. Returns the place that they take."""
    edge = _edge(line)
    x0, y0, x1, y1 = (round(value) for value in detection.box)
    outer = (
        max(x0 - line, edge), max(y0 - line, edge),
        min(x1 + line, drawn.width - edge) - 1, min(y1 + line, drawn.height - edge) - 1,
    )  # fmt: skip
    outer = (min(outer[0], outer[2]), min(outer[1], outer[3]), *outer[2:])
    rim = (outer[0] - edge, outer[1] - edge, outer[2] + edge, outer[3] + edge)
    canvas = ImageDraw.Draw(drawn)
    canvas.rectangle(rim, outline=ink(color), width=edge)
    canvas.rectangle(outer, outline=color, width=line)
    return rim[0], rim[1], rim[2] + 1, rim[3] + 1


def _draw_labels(
    drawn: Image.Image, detections: Sequence[Detection], outlines: Sequence[Rectangle], colors: dict[str, Color], side: float
) -> None:
    """Letters on coloured strips of one height.

    A text that would take too much of the picture is shortened, and in the end left out; so is, in a small picture, one
    that would hide another label or a box.
    """
    font = label_font(colors, max(MIN_FONT_SIZE, side / FONTS_PER_SIDE))
    crowded = side < MIN_FONT_SIZE * FONTS_PER_SIDE
    canvas = ImageDraw.Draw(drawn)
    layout = LabelLayout(drawn.size, outlines)
    for detection, outline in zip(detections, outlines, strict=True):
        for text in label_texts(detection, font):
            strip = layout.place(_strip_size(text, font), outline, overlap=not crowded)
            if strip is not None:
                _draw_label(canvas, text, strip, colors[detection.label], font)
                break


def _strip_size(text: str, font: FreeTypeFont) -> tuple[int, int]:
    _, top, _, bottom = font.getbbox("X")
    pad = _pad(font)
    return math.ceil(font.getlength(text)) + 2 * pad, round(bottom - top) + 2 * pad


def _pad(font: FreeTypeFont) -> int:
    return round(0.3 * font.size)  # room for the parts of letters below the line


def _draw_label(canvas: ImageDraw.ImageDraw, text: str, strip: Rectangle, color: Color, font: FreeTypeFont) -> None:
    x0, y0, x1, y1 = strip
    canvas.rectangle((x0, y0, x1 - 1, y1 - 1), fill=color)
    canvas.text((x0 + _pad(font), y1 - _pad(font)), text, fill=ink(color), font=font, anchor="ls")
