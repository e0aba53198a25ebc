"""What is shown of an answer: layers that lie where the objects are, names that tell them apart, a table, a line."""

import numpy as np
import pytest
from PIL import Image

from mlx_paligemma.common.draw import label_color
from mlx_paligemma.common.formats import as_record
from mlx_paligemma.common.results import Detection, Detections, GenerationResult, Stats
from mlx_paligemma.ui import view

WIDTH, HEIGHT = 120, 90
STATS = Stats(68, 2, 0.5, None, 1000)


def mask_of(x0, y0, x1, y1, width=WIDTH, height=HEIGHT):
    mask = np.zeros((height, width), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


CAT = Detection("cat", (10.0, 20.0, 40.5, 80.0), 0.75)
DOG = Detection("dog", (60.0, 5.0, 100.0, 45.0), 0.5, mask_of(62, 10, 99, 40))
COW = Detection("cow", (0.0, 0.0, 120.0, 90.0))


def found(*items, width=WIDTH, height=HEIGHT):
    return Detections(items, width, height)


def record(*items, stats=STATS, reason="stop", **more):
    return as_record("a.png", "detect", GenerationResult("text", [1], reason, stats, found(*items), **more))


def layers_of(*items, width=WIDTH, height=HEIGHT):
    return view.layers(Image.new("RGB", (width, height)), found(*items, width=width, height=height))


def test_a_record_gives_its_objects_back():
    items = view.found_in(record(CAT, DOG, COW))
    assert [(item.label, item.box, item.score) for item in items] == [
        (item.label, item.box, item.score) for item in (CAT, DOG, COW)
    ]
    assert np.array_equal(items[1].mask, DOG.mask)
    assert items[0].mask is None
    assert (items.width, items.height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize(("least", "names"), [(0, "cat dog cow"), (0.5, "cat dog cow"), (0.51, "cat cow"), (1, "cow")])
def test_a_minimum_score_hides_what_is_below_it_and_nothing_without_a_score(least, names):
    """In what is shown and in what is taken away alike."""
    whole = record(CAT, DOG, COW)
    assert [item.label for item in view.found_in(whole, least)] == names.split()
    assert [item["label"] for item in view.with_score(whole, least)["detections"]] == names.split()
    assert len(whole["detections"]) == 3


def test_the_layers_of_a_box_are_its_outline():
    (opacity, name), *_ = layers_of(CAT).layers
    assert (opacity.shape, opacity.dtype, name) == ((HEIGHT, WIDTH), np.float32, "cat 0.75")
    outline = mask_of(10, 20, 40, 80) & ~mask_of(12, 22, 38, 78)
    assert np.array_equal(opacity, np.where(outline, view.OUTLINE, 0))


def test_the_layer_of_a_mask_lies_under_the_outline():
    [(opacity, _)] = layers_of(DOG).layers
    outline = mask_of(60, 5, 100, 45) & ~mask_of(62, 7, 98, 43)
    assert np.array_equal(opacity, np.where(outline, view.OUTLINE, np.where(DOG.mask, view.FILLED, 0)))


@pytest.mark.parametrize(
    ("box", "shown"),
    [
        ((0, 0, 120, 90), (0, 0, 120, 90)),
        ((119.9, 89.9, 120, 90), (119, 89, 120, 90)),
        ((0, 0, 0.2, 0.2), (0, 0, 1, 1)),
        ((0, 10, 1, 80), (0, 10, 1, 80)),
        ((10, 0, 80, 1), (10, 0, 80, 1)),
        ((118, 20, 120, 90), (118, 20, 120, 90)),
        ((-5, -5, 130, 95), (0, 0, 120, 90)),
    ],
)
def test_a_box_at_the_border_or_thinner_than_a_pixel_is_seen(box, shown):
    [(opacity, _)] = layers_of(Detection("cat", box)).layers
    x0, y0, x1, y1 = shown
    inside = mask_of(x0 + 2, y0 + 2, max(x1 - 2, x0 + 2), max(y1 - 2, y0 + 2))
    assert np.array_equal(opacity == view.OUTLINE, mask_of(*shown) & ~inside)
    assert opacity.any()


@pytest.mark.parametrize("size", [(3000, 1500), (1000, 4000)])
def test_a_large_picture_is_shown_smaller_with_its_objects_in_their_places(size):
    width, height = size
    quarter = (width // 4, height // 4, width // 2, height // 2)
    item = Detection("cat", tuple(map(float, quarter)), None, mask_of(*quarter, width, height))
    made = layers_of(item, width=width, height=height)
    assert max(made.picture.size) == view.LONGEST_SIDE
    [(opacity, _)] = made.layers
    shown = made.picture.size
    assert opacity.shape == shown[::-1]
    edges = mask_of(shown[0] // 4, shown[1] // 4, shown[0] // 2, shown[1] // 2, *shown)
    assert np.array_equal(opacity > 0, edges)
    assert opacity[shown[1] * 3 // 8, shown[0] * 3 // 8] == view.FILLED


def test_the_picture_itself_is_left_as_it_was():
    picture = Image.new("RGB", (3000, 10))
    view.layers(picture, found(width=3000, height=10))
    assert picture.size == (3000, 10)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["cat", "dog"], ["cat", "dog"]),
        (["cat", "dog", "cat"], ["cat (1)", "dog", "cat (3)"]),
        (["cat", "cat", "cat (1)"], ["1: cat", "2: cat", "3: cat (1)"]),
        ([], []),
    ],
)
def test_names_tell_objects_apart(labels, names):
    made = layers_of(*(Detection(label, CAT.box) for label in labels))
    assert [name for _, name in made.layers] == [*made.colors] == names


def test_equal_labels_have_the_colour_of_drawn_pictures():
    colors = layers_of(CAT, DOG, CAT).colors
    assert {*colors} == {"cat 0.75 (1)", "dog 0.50", "cat 0.75 (3)"}
    assert colors["cat 0.75 (1)"] == colors["cat 0.75 (3)"] == "#{:02x}{:02x}{:02x}".format(*label_color("cat"))
    assert colors["dog 0.50"] != colors["cat 0.75 (1)"]


def test_the_table_has_a_row_for_each_object():
    assert view.rows(found(CAT, DOG, COW)) == [
        [1, "cat", "0.750", "10, 20, 40, 80", ""],
        [2, "dog", "0.500", "60, 5, 100, 45", 37 * 30],
        [3, "cow", "", "0, 0, 120, 90", ""],
    ]
    assert all(len(row) == len(view.TABLE) for row in view.rows(found(CAT)))


def test_the_line_says_what_the_answer_cost():
    assert view.summary(record()) == "2 tokens, the first after 0.50 s"
    stats = Stats(68, 1, None, 12.34, 1000)
    assert view.summary(record(CAT, stats=stats, reason="cancelled")) == "1 object, 1 token, then 12.3 a second, stopped"
    assert view.summary(record(CAT, DOG, notes=("cut off", "no masks"))).endswith("\n\ncut off\n\nno masks")
    assert view.summary(record(CAT, DOG)).startswith("2 objects, 2 tokens")
