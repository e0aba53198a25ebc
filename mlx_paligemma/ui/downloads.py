"""Answers as files to take away: the drawn picture, JSON, COCO, masks; and a zip of many answers."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from PIL import Image

from ..common.draw import draw_detections
from ..common.errors import ImageError
from ..common.formats import ENCODING, Record, as_line, mask_file_name, write_coco, write_csv
from ..common.masks import save_mask
from ..common.results import Detections
from .file_names import plain_stem, unique_names
from .view import found_in

ReadPicture = Callable[[Record], Image.Image]


def answer_files(folder: Path, picture: Image.Image, record: Record) -> list[Path]:
    """The files of one answer, in an empty folder: JSON always; the drawn picture, COCO and masks where there are objects."""
    stem, found = plain_stem(record["image"]), found_in(record)
    written = [folder / f"{stem}.json"]
    written[0].write_text(json.dumps(record, ensure_ascii=False, indent=2, allow_nan=False) + "\n", **ENCODING)
    if found:
        written += [folder / f"{stem}-drawn.png", folder / f"{stem}-coco.json"]
        draw_detections(picture, found).save(written[1])
        write_coco([record], written[2])
    if any(item.mask is not None for item in found):
        written.append(_zipped(folder / f"{stem}-masks.zip", _write_masks(folder, stem, found)))
    return written


def batch_zip(folder: Path, records: Sequence[Record], read: ReadPicture) -> Path:
    """A zip of many answers, in an empty folder: answers.jsonl, and where there are objects coco.json, objects.csv, and the
    folders drawn and masks. No two records may be about pictures of the same name.
    """
    with zipfile.ZipFile(folder / "answers.zip", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("answers.jsonl", "".join(f"{as_line(record)}\n" for record in records))
        if any(record.get("detections") for record in records):
            for file in _write_tables(folder, records):
                out.write(file, file.name)
            for name, file in _drawings(folder, records, read):
                out.write(file, name)
                file.unlink()
    return folder / "answers.zip"


def _write_tables(folder: Path, records: Sequence[Record]) -> list[Path]:
    write_coco(records, folder / "coco.json")
    write_csv(records, folder / "objects.csv")
    return [folder / "coco.json", folder / "objects.csv"]


def _drawings(folder: Path, records: Sequence[Record], read: ReadPicture) -> Iterator[tuple[str, Path]]:
    """Place in the zip and file of each drawn picture and mask, one after the other."""
    with_objects = [record for record in records if record.get("detections")]
    stems = unique_names([f"{plain_stem(record['image'])}.png" for record in with_objects])
    for record, name in zip(with_objects, stems, strict=True):
        found = found_in(record)
        with suppress(ImageError):  # it was there when it was asked about, but uploads are not kept for ever
            draw_detections(read(record), found).save(folder / name)
            yield f"drawn/{name}", folder / name
        for mask in _write_masks(folder, Path(name).stem, found):
            yield f"masks/{mask.name}", mask


def _write_masks(folder: Path, stem: str, found: Detections) -> Iterator[Path]:
    for number, item in enumerate(found, 1):
        if item.mask is not None:
            path = folder / mask_file_name(stem, number, item.label)
            save_mask(item.mask, path)
            yield path


def _zipped(target: Path, files: Iterator[Path]) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as out:
        for file in files:
            out.write(file, file.name)
            file.unlink()
    return target
