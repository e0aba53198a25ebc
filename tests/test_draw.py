"""Boxes and masks on pictures of any size."""

import numpy as np
import pytest
from PIL import Image

from mlx_paligemma.common.draw import draw_detections, label_color
from mlx_paligemma.common.results import Detection


def changed(before, after):
    return (np.asarray(before) != np.asarray(after)).any(axis=-1)


@pytest.mark.parametrize("size", [(64, 48), (700, 500), (4000, 3000)])
@pytest.mark.parametrize("background", ["black", "white"])
def test_a_box_is_drawn_along_its_edges_and_not_inside(size, background):
    image = Image.new("RGB", size, background)
    width, height = size
    drawn = draw_detections(image, [Detection("", (width * 0.25, height * 0.25, width * 0.75, height * 0.75))])
    marks = changed(image, drawn)
    assert marks[height // 4, width // 2]
    assert marks[height // 2, width // 4]
    assert not marks[height // 2, width // 2]
    assert not marks[: height // 8].any()


def test_the_line_grows_with_the_picture():
    counts = []
    for side in (100, 1000):
        image = Image.new("RGB", (side, side), "gray")
        drawn = draw_detections(image, [Detection("", (side * 0.2, side * 0.2, side * 0.8, side * 0.8))])
        counts.append(changed(image, drawn)[side // 2].sum())
    assert counts[1] >= 3 * counts[0]


def test_a_mask_tints_its_pixels_and_no_others():
    image = Image.new("RGB", (100, 100), (200, 200, 200))
    mask = np.zeros((100, 100), dtype=bool)
    mask[45:55, 45:55] = True
    drawn = draw_detections(image, [Detection("", (20, 20, 80, 80), mask=mask)])
    inside = changed(image, drawn)[25:75, 25:75]
    assert np.array_equal(inside, mask[25:75, 25:75])


def test_the_picture_given_stays_as_it_was():
    image = Image.new("RGB", (50, 50), "red")
    draw_detections(image, [Detection("cat", (5, 5, 40, 40), 0.5, np.ones((50, 50), dtype=bool))])
    assert image.getcolors() == [(2500, (255, 0, 0))]


def test_a_label_at_the_edge_stays_in_the_picture_and_can_be_read():
    image = Image.new("RGB", (300, 200), "white")
    drawn = draw_detections(image, [Detection("elephant", (280, 0, 300, 20), 0.98)])
    colors = np.asarray(drawn)[:24, 150:].reshape(-1, 3)
    strip = (colors == label_color("elephant")).all(axis=-1).sum()
    assert strip > 500


def test_a_label_has_one_colour_in_every_run():
    assert label_color("cat") == (230, 25, 75)  # from a checksum of the text, not from Python's hash, which varies
    assert len({label_color(name) for name in ("cat", "dog", "bird", "car", "tree", "person")}) >= 3
