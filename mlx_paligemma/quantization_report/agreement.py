"""How far a model's answers agree with another's: the same text, the same boxes, the same masks. No ground truth is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from ..common.locations import MaskDecoder, parse_detections
from ..common.results import Detection
from ..demo.accuracy import iou, mask_iou
from .answers import Answer, Batch

MEASURES = ("same text", "box IoU", "mask IoU")


def agreement(reference: Sequence[Batch], other: Sequence[Batch], decode: MaskDecoder | None) -> dict[str, list[float]]:
    """Values in 0..1 of each measure. Texts count per answer, boxes and masks per object; one that the other lacks counts 0.

    Args:
        reference: the unquantised model's answers.
        other: a model's answers to the same prompts.
        decode: of the checkpoint's mask codec; None: masks are not compared.
    """
    values: dict[str, list[float]] = {name: [] for name in MEASURES}
    for ours, theirs in _pairs(reference, other):
        values["same text"].append(float(ours.text == theirs.text))
        for a, b in matched(_objects(ours, decode), _objects(theirs, decode)):
            values["box IoU"].append(iou(a.box, b.box) if a and b else 0.0)
            masks = [item.mask for item in (a, b) if item is not None and item.mask is not None]
            if masks:
                values["mask IoU"].append(mask_iou(masks[0], masks[1]) if len(masks) == 2 else 0.0)
    return values


def matched(ours: Sequence[Detection], theirs: Sequence[Detection]) -> list[tuple[Detection | None, Detection | None]]:
    """Objects of one label paired one to one, those that overlap most first; then those that are left over, with None."""
    overlaps = {(i, j): iou(a.box, b.box) for (i, a), (j, b) in product(enumerate(ours), enumerate(theirs)) if a.label == b.label}
    found: dict[int, int] = {}
    for i, j in sorted(overlaps, key=lambda pair: -overlaps[pair]):
        if i not in found and j not in found.values():
            found[i] = j
    pairs: list[tuple[Detection | None, Detection | None]] = [
        (item, theirs[found[i]] if i in found else None) for i, item in enumerate(ours)
    ]
    return pairs + [(None, item) for j, item in enumerate(theirs) if j not in found.values()]


def _pairs(reference: Sequence[Batch], other: Sequence[Batch]) -> Iterator[tuple[Answer, Answer]]:
    for ours, theirs in zip(reference, other, strict=True):
        yield from zip(ours.answers, theirs.answers, strict=True)


def _objects(answer: Answer, decode: MaskDecoder | None) -> Sequence[Detection]:
    return parse_detections(answer.text, answer.width, answer.height, decode)
