"""Answers as JSON records, and records as the files of other programs: COCO, YOLO, CSV.

The writers read records one by one (that of YOLO twice), and leave out the pictures that failed. A file is there whole or
not at all.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TextIO

import numpy as np

from .masks import decode_rle, encode_rle, mask_polygons
from .results import Detection, GenerationResult

Record = dict[str, Any]  # what JSON can hold
STEM_BYTES = 150  # of a file's name: disks allow 255, with the number, the label and the ending
LABEL_BYTES = 80

# the name of a file need not be text; what is none is written as \udc80, which JSON reads back
ENCODING: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}


def as_record(image: str, prompt: str, result: GenerationResult) -> Record:
    """The JSON form of an answer about the picture called `image`. None stands where a number is missing, never NaN."""
    record = {
        "image": image,
        "width": result.detections.width,
        "height": result.detections.height,
        "prompt": prompt,
        "text": result.text,
        "token_ids": result.token_ids,
        "finish_reason": result.finish_reason,
        "detections": [_detection_record(detection) for detection in result.detections],
        "stats": asdict(result.stats),
    }
    if result.token_logprobs is not None:
        record["token_logprobs"] = result.token_logprobs
    if result.top_logprobs is not None:
        record["top_logprobs"] = [[[*pair] for pair in likeliest] for likeliest in result.top_logprobs]
    if result.notes:
        record["notes"] = [*result.notes]
    finite: Record = _finite(record)
    return finite


def failed_record(image: str, prompt: str, error: str) -> Record:
    """The JSON form of the answer that a picture could not get."""
    return {"image": image, "prompt": prompt, "error": error}


def as_line(record: Record) -> str:
    """One line of JSON, without its end; raises ValueError for NaN. Letters stay letters."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode(**ENCODING).decode()


def write_coco(records: Iterable[Record], target: Path) -> None:
    """One COCO dataset file. file_name is the picture's name as it was given; two answers about a picture share its entry.

    A mask is written as polygons (its holes are lost, see `mask_polygons`); area is the mask's, or else the box's.
    """
    categories: dict[str, int] = {}
    with replacing(target) as out, TemporaryFile("w+", **ENCODING) as annotations:
        out.write('{"info": {"description": "Answers of mlx-paligemma"},\n"images": [')
        places = {"image": out, "annotation": annotations}
        totals = dict.fromkeys(places, 0)
        for kind, entry in _coco_entries(records, categories):
            places[kind].write(",\n" if totals[kind] else "\n")
            places[kind].write(as_line(entry))
            totals[kind] += 1
        out.write('],\n"annotations": [')
        annotations.seek(0)
        shutil.copyfileobj(annotations, out)
        named = [{"id": number, "name": label, "supercategory": ""} for label, number in categories.items()]
        out.write(f'],\n"categories": {json.dumps(named, ensure_ascii=False)}}}\n')


def write_yolo(records: Iterable[Record], folder: Path) -> None:
    """Labels for training: labels/<picture's name>.txt, empty where nothing was found, and data.yaml with the classes.

    A line is "class x y width height" of a box, or "class x1 y1 x2 y2 ..." of a mask's outline, in fractions of the
    picture. The parts of a mask are one outline, joined by lines without width. Pictures of the same name get -2, -3, ...;
    pictures.csv tells which labels are whose.
    """
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    classes: dict[str, int] = {}
    stems, written = Stems(record["image"] for record in _answered(records)), set()
    for record in _answered(records):
        path = folder / "labels" / f"{stems.of(record['image'])}.txt"
        before = path.read_text(encoding="utf-8") if path in written else ""
        lines = [_yolo_line(detection, record, classes) for detection in record["detections"]]
        with replacing(path) as out:
            out.write(before + "".join(lines))
        written.add(path)
    with replacing(folder / "pictures.csv") as out:
        csv.writer(out, lineterminator="\n").writerows(
            [("labels", "image"), *((f"{stem}.txt", name) for name, stem in stems.given())]
        )
    with replacing(folder / "data.yaml") as out:
        out.write("# the pictures belong into the folder images, beside labels\npath: .\ntrain: images\nval: images\n")
        named = "".join(f"\n  {number}: {json.dumps(label, ensure_ascii=False)}" for label, number in classes.items())
        out.write(f"names:{named or ' {}'}\n")


def write_csv(records: Iterable[Record], target: Path) -> None:
    """A table with a row per object, edges in pixels; score is empty where there is none."""
    with replacing(target) as out:
        table = csv.writer(out, lineterminator="\n")
        table.writerow(["image", "label", "x_min", "y_min", "x_max", "y_max", "score"])
        for record in _answered(records):
            for detection in record["detections"]:
                table.writerow([record["image"], detection["label"], *_rounded(detection["box"]), detection["score"]])


class Stems:
    """A file name for every picture, without its ending: its own, or with -2, -3, ... where another picture has that already."""

    def __init__(self, names: Iterable[str] = ()):
        """`names` are those of pictures that may come: none of their own names is given to another."""
        self._own = {picture_stem(name).casefold() for name in names}
        self._given: dict[str, str] = {}
        self._used: set[str] = set()
        self._numbers: dict[str, Iterator[int]] = {}

    def of(self, name: str) -> str:
        """The name for the picture called `name` (a path or an address), always the same."""
        if name not in self._given:
            self._given[name] = next(stem for stem in self._candidates(picture_stem(name)) if stem.casefold() not in self._used)
            self._used.add(self._given[name].casefold())
        return self._given[name]

    def given(self) -> Iterable[tuple[str, str]]:
        """Pictures and their file names, in the order in which they were asked for."""
        return self._given.items()

    def _candidates(self, stem: str) -> Iterator[str]:
        numbers = self._numbers.setdefault(stem.casefold(), count(1))  # x.png and X.png are one file on a Mac's disk
        numbered = (stem if number == 1 else f"{stem}-{number}" for number in numbers)
        return (name for name in numbered if name == stem or name.casefold() not in self._own)


def picture_stem(source: str) -> str:
    """The name of a picture's file or address, without its ending."""
    is_address = "://" in source
    stem = Path(source.split("?", maxsplit=1)[0] if is_address else source).stem
    return _cut(stem, STEM_BYTES) or "picture"


def mask_file_name(stem: str, number: int, label: str) -> str:
    """Of an object's mask: the picture's name, the object's number in the answer, its label in letters and digits of any script."""
    slug = _cut(re.sub(r"[\W_]+", "-", label).strip("-")[:40], LABEL_BYTES) or "object"
    return f"{stem}-{number}-{slug}.png"


def _cut(name: str, most: int) -> str:
    """As many of its letters as fit into so many bytes."""
    while len(os.fsencode(name)) > most:
        name = name[:-1]
    return name


@contextmanager
def replacing(target: Path) -> Iterator[TextIO]:
    """A file to write text to, which takes the place of `target` at the end, and vanishes if there is an error."""
    part = target.with_name(f".part-{os.getpid()}")
    try:
        with part.open("w", newline="", **ENCODING) as out:
            yield out
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {key: _finite(inner) for key, inner in value.items()}
        case list():
            return [_finite(inner) for inner in value]
        case float() if not math.isfinite(value):
            return None
    return value


def _detection_record(detection: Detection) -> Record:
    mask = None if detection.mask is None else encode_rle(detection.mask)
    return {"label": detection.label, "box": [*detection.box], "score": detection.score, "mask": mask}


def _answered(records: Iterable[Record]) -> Iterator[Record]:
    return (record for record in records if "error" not in record)


def _coco_entries(records: Iterable[Record], categories: dict[str, int]) -> Iterator[tuple[str, Record]]:
    """Every image and annotation as it comes; `categories` gets the ids of new labels."""
    images: dict[str, int] = {}
    numbers = count(1)
    for record in _answered(records):
        name = record["image"]
        if name not in images:
            images[name] = len(images) + 1
            yield "image", {"id": images[name], "file_name": name, "width": record["width"], "height": record["height"]}
        for detection in record["detections"]:
            category = categories.setdefault(detection["label"], len(categories) + 1)
            ids = {"id": next(numbers), "image_id": images[name], "category_id": category}
            yield "annotation", ids | _coco_shape(detection) | {"iscrowd": 0, "score": detection["score"]}


def _coco_shape(detection: Record) -> Record:
    x0, y0, x1, y1 = detection["box"]
    shape = {"bbox": _rounded([x0, y0, x1 - x0, y1 - y0]), "area": round((x1 - x0) * (y1 - y0), 3), "segmentation": []}
    if detection["mask"] is not None:
        mask = decode_rle(detection["mask"])
        shape |= {"area": float(mask.sum()), "segmentation": [line.ravel().astype(int).tolist() for line in mask_polygons(mask)]}
    return shape


def _yolo_line(detection: Record, record: Record, classes: dict[str, int]) -> str:
    x0, y0, x1, y1 = detection["box"]
    polygons = [] if detection["mask"] is None else mask_polygons(decode_rle(detection["mask"]))
    points = _joined(polygons) if polygons else np.array([[(x0 + x1) / 2, (y0 + y1) / 2], [x1 - x0, y1 - y0]])
    fractions = np.clip(points / [record["width"], record["height"]], 0, 1).ravel()
    number = classes.setdefault(detection["label"], len(classes))
    return f"{number} {' '.join(f'{value:.6f}' for value in fractions)}\n"


def _joined(polygons: list[np.ndarray]) -> np.ndarray:
    """Polygons [n, 2] as one: around each of them, over to the next, and from the last one the same way back."""
    if len(polygons) == 1:
        return polygons[0]
    there = [point for polygon in polygons for point in (polygon, polygon[:1])]
    back = [polygon[:1] for polygon in reversed(polygons[:-1])]
    return np.concatenate([*there, *back])


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 3) for value in values]
