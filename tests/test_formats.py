"""Records and the files made of them, read back with the programs that they are for."""

import csv
import json
import math
import os
import weakref

import numpy as np
import pytest
from PIL import Image

from mlx_paligemma.common.formats import (
    Stems,
    as_line,
    as_record,
    failed_record,
    mask_file_name,
    picture_stem,
    replacing,
    write_coco,
    write_csv,
    write_yolo,
)
from mlx_paligemma.common.results import Detection, Detections, GenerationResult, Stats

WIDTH, HEIGHT = 120, 90
WRITERS = {"coco": write_coco, "yolo": write_yolo, "csv": write_csv}
STATS = Stats(68, 2, 0.5, None, 1000)


def mask_of(*boxes):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


TWO_PARTS = mask_of((10, 10, 40, 30), (60, 50, 90, 80))
CAT = Detection("cat", (10.0, 20.0, 40.5, 80.0), 0.75)
DOG = Detection("dog, big", (60.0, 5.0, 100.0, 45.0), 0.5, mask_of((62, 5, 100, 45)))
PARTED = Detection("cat", (10.0, 10.0, 90.0, 80.0), None, TWO_PARTS)


def record(image, *detections, prompt="detect cat", **changes):
    found = Detections(detections, WIDTH, HEIGHT)
    return as_record(image, prompt, GenerationResult("text", [1, 2], "stop", STATS, found, **changes))


def records():
    return [
        record("pics/one.png", CAT, DOG),
        failed_record("pics/broken.png", "detect cat", "damaged"),
        record("pics/empty.png"),
        record("other/one.png", PARTED),
    ]


@pytest.fixture
def dataset(tmp_path):
    """A folder with the pictures that the records are about."""
    for name in ("pics/one.png", "pics/empty.png", "other/one.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / name)
    return tmp_path


def test_a_record_says_everything_about_an_answer():
    found = record("a.png", CAT, DOG)
    assert list(found) == [
        "image", "width", "height", "prompt", "text", "token_ids", "finish_reason", "detections", "stats",
    ]  # fmt: skip
    assert (found["width"], found["height"]) == (WIDTH, HEIGHT)
    assert found["detections"][0] == {"label": "cat", "box": [10.0, 20.0, 40.5, 80.0], "score": 0.75, "mask": None}
    assert found["detections"][1]["mask"]["size"] == [HEIGHT, WIDTH]


def test_log_probabilities_and_notes_are_there_when_there_are_some():
    found = record("a.png", token_logprobs=[-0.5, -math.inf], notes=("no masks",))
    assert found["token_logprobs"] == [-0.5, None]
    assert found["notes"] == ["no masks"]
    assert record("a.png", token_logprobs=[])["token_logprobs"] == []
    likeliest = [[(7, -0.5), (3, -math.inf)], [(1, -2.0), (2, -2.5)]]
    assert record("a.png", top_logprobs=likeliest)["top_logprobs"] == [[[7, -0.5], [3, None]], [[1, -2.0], [2, -2.5]]]


def test_a_line_of_json_never_holds_nan():
    found = record("a.png", Detection("cat", (0.0, math.nan, 1.0, math.inf), math.nan))
    text = as_line(found)
    assert json.loads(text, parse_constant=pytest.fail)["detections"][0]["box"] == [0.0, None, 1.0, None]
    with pytest.raises(ValueError, match="JSON compliant"):
        as_line({"score": math.nan})


@pytest.mark.parametrize("name", ["Katze äöü.png", "猫\n犬.png", os.fsdecode(b"caf\xe9.png"), "a\u2028b.png"])
def test_any_file_name_comes_back_from_a_line_of_json(name):
    line = as_line(failed_record(name, "p", "e"))
    assert json.loads(line.encode("utf-8"))["image"] == name
    assert "\n" not in line


def test_coco_loads_in_pycocotools_with_boxes_masks_and_categories(tmp_path):
    from pycocotools.coco import COCO

    write_coco(iter(records()), tmp_path / "coco.json")
    loaded = COCO(tmp_path / "coco.json")
    assert [(image["id"], image["file_name"]) for image in loaded.dataset["images"]] == [
        (1, "pics/one.png"), (2, "pics/empty.png"), (3, "other/one.png"),
    ]  # fmt: skip
    assert [(category["id"], category["name"]) for category in loaded.dataset["categories"]] == [(1, "cat"), (2, "dog, big")]
    cat, dog, parted = loaded.dataset["annotations"]
    assert [entry["id"] for entry in (cat, dog, parted)] == [1, 2, 3]
    assert cat["bbox"] == [10.0, 20.0, 30.5, 60.0]
    assert (cat["area"], cat["segmentation"], cat["score"], cat["iscrowd"]) == (30.5 * 60, [], 0.75, 0)
    assert (loaded.annToMask(dog).astype(bool) == DOG.mask).all()
    assert dog["area"] == DOG.mask.sum()
    assert len(parted["segmentation"]) == 2
    assert (loaded.annToMask(parted).astype(bool) == TWO_PARTS).all()
    assert (parted["image_id"], parted["category_id"], parted["score"]) == (3, 1, None)


def test_coco_loads_in_supervision(dataset):
    supervision = pytest.importorskip("supervision")
    write_coco(records(), dataset / "coco.json")
    loaded = supervision.DetectionDataset.from_coco(str(dataset), str(dataset / "coco.json"), force_masks=True)
    assert loaded.classes == ["cat", "dog, big"]
    assert len(loaded) == 3
    found = loaded.annotations[str(dataset / "pics" / "one.png")]
    np.testing.assert_allclose(found.xyxy, [CAT.box, DOG.box])
    assert found.class_id.tolist() == [0, 1]
    assert (found.mask[1] & DOG.mask).sum() / DOG.mask.sum() == 1  # it paints the pixels on a polygon's edge too
    assert not found.mask[0].any()


def test_two_answers_about_a_picture_share_its_entry(tmp_path):
    both = [record("a.png", CAT), record("b.png"), record("a.png", DOG, prompt="segment dog")]
    write_coco(both, tmp_path / "coco.json")
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["a.png", "b.png"]
    assert [entry["image_id"] for entry in coco["annotations"]] == [1, 1]
    write_yolo(both, tmp_path / "yolo")
    assert len((tmp_path / "yolo" / "labels" / "a.txt").read_text().splitlines()) == 2


def test_yolo_boxes_are_centre_and_size_in_fractions(tmp_path):
    write_yolo([record("a.png", CAT)], tmp_path)
    number, *box = (tmp_path / "labels" / "a.txt").read_text().split()
    x, y, width, height = (float(value) for value in box)
    assert number == "0"
    edges = [(x - width / 2) * WIDTH, (y - height / 2) * HEIGHT, (x + width / 2) * WIDTH, (y + height / 2) * HEIGHT]
    np.testing.assert_allclose(edges, CAT.box, atol=1e-3)


def test_a_yolo_mask_of_several_parts_is_one_outline_with_their_area(tmp_path):
    parts = mask_of((10, 10, 40, 30), (60, 50, 90, 80), (5, 60, 20, 80), (100, 5, 110, 20))
    write_yolo([record("a.png", Detection("cat", (5.0, 5.0, 110.0, 80.0), None, parts))], tmp_path)
    (line,) = (tmp_path / "labels" / "a.txt").read_text().splitlines()
    x, y = np.array(line.split()[1:], dtype=float).reshape(-1, 2).T * [[WIDTH], [HEIGHT]]
    area = abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) / 2)  # the shoelace formula
    assert area == pytest.approx(parts.sum(), rel=1e-4)


def test_yolo_has_a_file_per_picture_and_none_for_failed_ones(tmp_path):
    write_yolo(records(), tmp_path / "set")
    labels = {path.name: path.read_text() for path in (tmp_path / "set" / "labels").iterdir()}
    assert sorted(labels) == ["empty.txt", "one-2.txt", "one.txt"]
    assert labels["empty.txt"] == ""
    assert [line.split()[0] for line in labels["one.txt"].splitlines()] == ["0", "1"]
    assert [len(line.split()) for line in labels["one.txt"].splitlines()] == [5, 9]  # a box; four corners


def test_yolo_loads_in_supervision(dataset):
    supervision = pytest.importorskip("supervision")
    write_yolo(records()[:3], dataset)
    loaded = supervision.DetectionDataset.from_yolo(
        str(dataset / "pics"), str(dataset / "labels"), str(dataset / "data.yaml"), force_masks=True
    )
    assert loaded.classes == ["cat", "dog, big"]
    assert len(loaded.annotations[str(dataset / "pics" / "empty.png")]) == 0
    found = loaded.annotations[str(dataset / "pics" / "one.png")]
    np.testing.assert_allclose(found.xyxy[0], CAT.box, atol=1)
    assert found.class_id.tolist() == [0, 1]
    assert (found.mask[1] & DOG.mask).sum() / DOG.mask.sum() > 0.97


def test_yolo_without_any_object_has_no_classes(tmp_path):
    write_yolo([record("a.png")], tmp_path)
    assert "names: {}\n" in (tmp_path / "data.yaml").read_text()


def test_csv_has_a_row_per_object(tmp_path):
    write_csv(records(), tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["image", "label", "x_min", "y_min", "x_max", "y_max", "score"],
        ["pics/one.png", "cat", "10.0", "20.0", "40.5", "80.0", "0.75"],
        ["pics/one.png", "dog, big", "60.0", "5.0", "100.0", "45.0", "0.5"],
        ["other/one.png", "cat", "10.0", "10.0", "90.0", "80.0", ""],
    ]


@pytest.mark.parametrize("form", WRITERS)
def test_no_records_give_a_whole_file(tmp_path, form):
    WRITERS[form]([], tmp_path / "out")
    text = (tmp_path / "out" / "data.yaml" if form == "yolo" else tmp_path / "out").read_text()
    assert {"coco": '"categories": []', "yolo": "names", "csv": "x_min"}[form] in text
    if form == "coco":
        assert json.loads(text)["images"] == []


@pytest.mark.parametrize("form", WRITERS)
def test_records_are_read_one_by_one(tmp_path, form):
    class Watched(dict):
        pass

    alive, most = weakref.WeakSet(), []
    Watched.__hash__ = object.__hash__

    def stream():
        for number in range(20):
            found = Watched(record(f"{number}.png", CAT))
            alive.add(found)
            most.append(len(alive))
            yield found

    WRITERS[form](stream(), tmp_path / "out")
    assert max(most) <= 2


@pytest.mark.parametrize("form", ["coco", "csv"])
def test_an_error_leaves_the_old_file_as_it_was_and_nothing_beside_it(tmp_path, form):
    def broken():
        yield record("a.png", CAT)
        raise KeyboardInterrupt

    (tmp_path / "out").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        WRITERS[form](broken(), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "old"


def test_a_replaced_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").touch()
    with replacing(tmp_path / "new") as out:
        out.write("x")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_no_two_pictures_share_a_file_name():
    names = ["a/x.png", "b/x.png", "x-2.png", "X.jpg", "https://host/x.png?size=2", "a/x.png", "https://host/"]
    stems = Stems()
    assert [stems.of(name) for name in names] == ["x", "x-2", "x-2-2", "X-3", "x-4", "x", "host"]


@pytest.mark.parametrize(
    ("label", "name"),
    [("cat", "a-3-cat.png"), ("big  cat_2!", "a-3-big-cat-2.png"), ("ñandú 猫", "a-3-ñandú-猫.png"), ("../..", "a-3-object.png")],
)
def test_the_name_of_a_masks_file_has_the_picture_the_number_and_the_label(label, name):
    assert mask_file_name("a", 3, label) == name


@pytest.mark.parametrize("letter", ["a", "é", "猫", "𝒳"])
def test_the_name_of_a_masks_file_fits_on_a_disk_whatever_the_label(letter, tmp_path):
    name = mask_file_name(picture_stem(letter * 300), 10_000, letter * 300)
    assert len(os.fsencode(name)) <= 255
    (tmp_path / name).touch()
    assert letter in name.split("-")[2]
