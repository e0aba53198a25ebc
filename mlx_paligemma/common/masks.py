"""Masks, bool [height, width], in the forms that other programs read: run-length codes, polygons, PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
from contourpy import FillType, contour_generator
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco


def encode_rle(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's run-length code of a mask: {"size": [height, width], "counts": str}."""
    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [*mask.shape], "counts": encoded["counts"].decode("ascii")}


def decode_rle(code: dict[str, Any]) -> NDArray[np.bool_]:
    """The mask of a code made by `encode_rle`."""
    decoded: NDArray[np.bool_] = coco.decode(code).astype(np.bool_)
    return decoded


def mask_polygons(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """The outline of every connected part of a mask: corners [n, 2], x and y in pixels, the last one not repeated.

    Outlines run along the pixels' edges, so that a full mask of w x h pixels has the corners 0,0 and w,h, and a part is
    covered exactly. Holes are covered too: lists of polygons, as in COCO and YOLO, have no way to cut one out of another.
    Whether pixels that touch at a corner alone are one part is not defined. An empty mask has no polygons.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return []
    corner = columns[0], rows[0]
    part = np.pad(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)
    filled = contour_generator(z=part.astype(np.float64), fill_type=FillType.OuterOffset).filled(0.5, 2)
    lines, offsets = cast("tuple[list[NDArray[np.float64]], list[NDArray[np.uint32]]]", filled)
    return [_corners(line[: ends[1]]) + corner for line, ends in zip(lines, offsets, strict=True)]  # from ends[1] on: holes


def save_mask(mask: NDArray[np.bool_], path: Path) -> None:
    """Write a mask as a PNG file in gray: 255 inside, 0 outside."""
    Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))).save(path, format="PNG")


def _corners(line: NDArray[np.float64]) -> NDArray[np.float64]:
    """The corners of a closed line [n, 2] through the middles of pixel edges, in indices of a mask padded by one pixel.

    Middles of vertical edges have half an index in x, those of horizontal ones in y. The outline turns between an edge of
    either kind, at the x of the one and the y of the other.
    """
    here, there = line[:-1], line[1:]
    turns = (here != there).all(axis=1)
    here, there = here[turns], there[turns]
    vertical_first = here[:, 0] % 1 == 0.5
    x, y = np.where(vertical_first, (here[:, 0], there[:, 1]), (there[:, 0], here[:, 1]))
    return np.stack([x, y], axis=1) - 0.5
