"""An answer as the page shows it: objects on the picture, a table, a line about what it cost. Works on JSON records.

Axes: h, w the shown picture's height and width, which are those of the picture or smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..common.draw import label_colors
from ..common.formats import Record
from ..common.masks import decode_rle
from ..common.results import Detection, Detections

LONGEST_SIDE = 1280  # pixels of a shown picture; each object is a layer of that size
FILLED, OUTLINE = 0.5, 1.0  # opacity
LINES_PER_SIDE = 150  # side of the picture / thickness of a box's line
TABLE = ("#", "Label", "Score", "Box: x0, y0, x1, y1", "Mask pixels")


@dataclass(frozen=True, eq=False)
class Layers:
    """A picture and what lies on it."""

    picture: Image.Image
    layers: list[tuple[NDArray[Any] | tuple[int, int, int, int], str]]  # opacity, float32 [h, w], and name of each object
    colors: dict[str, str]  # by name, #rrggbb


def found_in(record: Record, min_score: float = 0.0) -> Detections:
    """The objects of a record, with at least this score."""
    items = tuple(
        Detection(found["label"], tuple(found["box"]), found["score"], None if found["mask"] is None else decode_rle(found["mask"]))
        for found in record["detections"]
    )
    return Detections(items, record["width"], record["height"]).above(min_score)


def with_score(record: Record, min_score: float) -> Record:
    """The same record without the objects of a lower score."""
    kept = [found for found in record["detections"] if found["score"] is None or found["score"] >= min_score]
    return record | {"detections": kept}


def layers(picture: Image.Image, found: Detections) -> Layers:
    """Boxes as outlines and masks as tints, in the colours that drawn pictures have."""
    shown = picture.copy()
    shown.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    named = names(found)
    colors = label_colors(item.label for item in found)
    by_name = {name: "#{:02x}{:02x}{:02x}".format(*colors[item.label]) for name, item in zip(named, found, strict=True)}
    return Layers(shown, [(_opacity(item, picture, shown.size), name) for name, item in zip(named, found, strict=True)], by_name)


def rows(found: Detections) -> list[list[object]]:
    """The table's rows, with the columns of TABLE; an empty text where there is nothing."""
    return [
        [
            number, item.label, "" if item.score is None else f"{item.score:.3f}", ", ".join(f"{edge:.0f}" for edge in item.box),
            "" if item.mask is None else int(item.mask.sum()),
        ]
        for number, item in enumerate(found, 1)
    ]  # fmt: skip


def summary(record: Record) -> str:
    """What the answer cost, in a line."""
    stats, found = record["stats"], len(record["detections"])
    parts = [_counted(found, "object")] if found else []
    if not record["text"] and record["finish_reason"] != "cancelled":
        parts = ["The model has nothing to say to this"]
    parts.append(_counted(stats["generation_tokens"], "token"))
    if stats["time_to_first_token_s"] is not None:
        parts.append(f"the first after {stats['time_to_first_token_s']:.2f} s")
    if stats["generation_tps"] is not None:
        parts.append(f"then {stats['generation_tps']:.1f} a second")
    if record["finish_reason"] == "cancelled":
        parts.append("stopped")
    return ", ".join(parts) + "".join(f"\n\n{note}" for note in record.get("notes", []))


def _counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def names(found: Detections) -> list[str]:
    """A name for each object, with its score; numbered where two would have the same."""
    plain = [item.label if item.score is None else f"{item.label} {item.score:.2f}" for item in found]
    numbered = [name if plain.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(plain, 1)]
    is_clear = len({*numbered}) == len(numbered)  # not where a label itself looks like a numbered name
    return numbered if is_clear else [f"{number}: {name}" for number, name in enumerate(plain, 1)]


def _opacity(item: Detection, picture: Image.Image, size: tuple[int, int]) -> NDArray[np.float32]:
    """[h, w] in 0..1: the mask's tint under the box's outline."""
    width, height = size
    opacity = np.zeros((height, width), np.float32)
    if item.mask is not None:
        opacity[np.array(Image.fromarray(item.mask).resize(size))] = FILLED
    x0, x1 = _pixels(item.box[::2], width / picture.width, width)
    y0, y1 = _pixels(item.box[1::2], height / picture.height, height)
    line = max(2, round((width * height) ** 0.5 / LINES_PER_SIDE))
    inner = slice(y0 + line, max(y1 - line, 0)), slice(x0 + line, max(x1 - line, 0))
    inside = opacity[inner].copy()
    opacity[y0:y1, x0:x1] = OUTLINE
    opacity[inner] = inside
    return opacity


def _pixels(edges: tuple[float, ...], scale: float, size: int) -> tuple[int, int]:
    """First and past the last pixel of a side of a box; at least one pixel, so that it can be seen."""
    first, last = (min(max(round(edge * scale), 0), size) for edge in edges)
    first = min(first, size - 1)
    return first, max(last, first + 1)
