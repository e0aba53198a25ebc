"""Files to take away: they hold the answers, and can be opened on any machine."""

import csv
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from mlx_paligemma.common.draw import draw_detections
from mlx_paligemma.common.errors import ImageError
from mlx_paligemma.common.formats import as_line, as_record, failed_record
from mlx_paligemma.common.results import Detection, Detections, GenerationResult, Stats
from mlx_paligemma.ui.downloads import answer_files, batch_zip
from mlx_paligemma.ui.view import found_in

WIDTH, HEIGHT = 120, 90
MASK = np.zeros((HEIGHT, WIDTH), dtype=bool)
MASK[10:40, 62:99] = True
CAT = Detection("cat", (10.0, 20.0, 40.5, 80.0), 0.75)
DOG = Detection("Hündin, groß", (60.0, 5.0, 100.0, 45.0), 0.5, MASK)
LONG = Detection("猫" * 60, (0.0, 0.0, 50.0, 50.0), 0.5, MASK)


def record(image, *items, text="text"):
    found = Detections(items, WIDTH, HEIGHT)
    return as_record(image, "detect cat", GenerationResult(text, [1, 2], "stop", Stats(68, 2, 0.5, None, 1000), found))


def picture(record=None):
    return Image.new("RGB", (WIDTH, HEIGHT), "navy")


def opened(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def test_an_answer_in_words_is_one_json_file(tmp_path):
    found = record("my photo.jpg", text="ein Wort \u2028 é")
    [file] = answer_files(tmp_path, picture(), found)
    assert file.name == "my-photo.json"
    assert json.loads(file.read_text(encoding="utf-8")) == found
    assert "é" in file.read_text(encoding="utf-8")


def test_an_answer_with_objects_has_its_drawing_and_coco_and_masks(tmp_path):
    found = record("a.png", CAT, DOG)
    files = answer_files(tmp_path, picture(), found)
    assert [file.name for file in files] == ["a.json", "a-drawn.png", "a-coco.json", "a-masks.zip"]
    assert {*tmp_path.iterdir()} == {*files}
    assert np.array_equal(Image.open(files[1]), draw_detections(picture(), found_in(found)))
    assert [note["bbox"] for note in COCO(files[2]).dataset["annotations"]] == [[10, 20, 30.5, 60], [60, 5, 40, 40]]
    with zipfile.ZipFile(files[3]) as masks:
        assert masks.namelist() == ["a-2-Hündin-groß.png"]
        assert np.array_equal(opened(masks.read(masks.namelist()[0])) == 255, MASK)


def test_boxes_alone_have_no_masks(tmp_path):
    assert [file.suffix for file in answer_files(tmp_path, picture(), record("a.png", CAT))] == [".json", ".png", ".json"]


@pytest.mark.parametrize(
    "name",
    [
        "é ü 猫?*.png",
        "..\\..\\evil.png",
        ".png",
        "<b>.png",
        "-.-.png",
        "猫" * 80 + ".png",
        "a\udc80b.png",
        "C:x.png",
        "\u202ex.png",
    ],
)
def test_odd_names_become_ones_that_any_disk_can_save(name, tmp_path):
    files = answer_files(tmp_path, picture(), record(name, CAT, DOG, LONG))
    assert len(files) == 4
    stem = files[0].name.removesuffix(".json")
    assert stem.replace("-", "").replace(".", "").replace("_", "").isalnum() and stem[0] not in "-."
    assert [file.name for file in files[1:]] == [f"{stem}-drawn.png", f"{stem}-coco.json", f"{stem}-masks.zip"]
    with zipfile.ZipFile(batch_zip(tmp_path, [record(name, DOG)], picture)) as packed:
        assert f"drawn/{stem}.png" in packed.namelist()


def zipped(folder, records, read=picture):
    with zipfile.ZipFile(batch_zip(folder, records, read)) as packed:
        assert packed.testzip() is None
        assert len({*packed.namelist()}) == len(packed.namelist())
        return {name: packed.read(name) for name in packed.namelist()}


def test_a_zip_holds_all_answers_tables_drawings_and_masks(tmp_path):
    records = [record("a.png", CAT, DOG), failed_record("b.png", "detect cat", "damaged"), record("c.png"), record("d.png", DOG)]
    found = zipped(tmp_path, records)
    assert [*found] == [
        "answers.jsonl", "coco.json", "objects.csv",
        "drawn/a.png", "masks/a-2-Hündin-groß.png", "drawn/d.png", "masks/d-1-Hündin-groß.png",
    ]  # fmt: skip
    assert found["answers.jsonl"].decode() == "".join(f"{as_line(record)}\n" for record in records)
    coco = json.loads(found["coco.json"])
    assert [image["file_name"] for image in coco["images"]] == ["a.png", "c.png", "d.png"]
    assert len(coco["annotations"]) == 3
    rows = [*csv.DictReader(io.StringIO(found["objects.csv"].decode()))]
    assert [(row["image"], row["label"]) for row in rows] == [("a.png", "cat"), ("a.png", DOG.label), ("d.png", DOG.label)]
    assert np.array_equal(opened(found["drawn/d.png"]), draw_detections(picture(), [DOG]))
    assert np.array_equal(opened(found["masks/d-1-Hündin-groß.png"]) == 255, MASK)


def test_a_zip_of_answers_in_words_has_only_them(tmp_path):
    assert [*zipped(tmp_path, [record("a.png"), failed_record("b.png", "caption en", "damaged")])] == ["answers.jsonl"]


def test_pictures_whose_names_differ_little_have_files_of_their_own(tmp_path):
    names = ["a.png", "a.jpg", "A.png", "a-2.png", "a b.png", "a-b.png", "a?b.png", "a_b.png"]
    colors = [(index, 0, 0) for index in range(len(names))]
    found = zipped(
        tmp_path,
        [record(name, DOG) for name in names],
        lambda record: Image.new("RGB", (WIDTH, HEIGHT), colors[names.index(record["image"])]),
    )
    drawn = [name for name in found if name.startswith("drawn/")]
    assert len({name.casefold() for name in drawn}) == len(names)
    assert [tuple(opened(found[name])[-1, -1]) for name in drawn] == colors
    assert len([name for name in found if name.startswith("masks/")]) == len(names)


def test_no_path_of_the_machine_is_in_any_file(tmp_path):
    for content in zipped(tmp_path, [record("a.png", CAT, DOG)]).values():
        assert str(tmp_path).encode() not in content
    for file in answer_files(tmp_path, picture(), record("a.png", CAT, DOG)):
        assert str(tmp_path).encode() not in file.read_bytes()


def test_a_picture_that_has_gone_meanwhile_has_no_drawing_but_all_else(tmp_path):
    def read(record):
        if record["image"] == "a.png":
            raise ImageError("a.png cannot be read")
        return picture()

    found = zipped(tmp_path, [record("a.png", DOG), record("b.png", CAT)], read)
    assert [name for name in found if "/" in name] == ["masks/a-1-Hündin-groß.png", "drawn/b.png"]
    assert found["answers.jsonl"].count(b"\n") == 2


def test_nothing_but_the_zip_is_left_of_drawings_and_masks(tmp_path):
    batch_zip(tmp_path, [record("a.png", CAT, DOG)], picture)
    assert {file.name for file in tmp_path.iterdir()} == {"answers.zip", "coco.json", "objects.csv"}
