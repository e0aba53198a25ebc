"""Boxes, masks and labels on pictures of any size."""

import itertools

import numpy as np
import pytest
from PIL import Image

from mlx_paligemma.common.draw import PALETTE, draw_detections, ink, label_color, label_colors
from mlx_paligemma.common.errors import ImageError
from mlx_paligemma.common.results import Detection

WORDS = [
    "cat",
    "dog",
    "bird",
    "car",
    "tree",
    "person",
    "horse",
    "cup",
    "chair",
    "table",
    "boat",
    "bus",
    "lamp",
    "hat",
    "key",
    "sea",
]


def changed(before, after):
    return (np.asarray(before) != np.asarray(after)).any(axis=-1)


def shows(image, color):
    return (np.asarray(image) == color).all(axis=-1)


def contrast(a, b):
    """WCAG 2: 1 for equal colours, 21 for black on white."""
    lighter, darker = sorted((luminance(a), luminance(b)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color):
    values = np.array(color) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("size", [(64, 48), (700, 500), (4000, 3000)])
@pytest.mark.parametrize("background", ["black", "white"])
def test_a_box_is_drawn_around_its_edges_and_not_inside(size, background):
    image = Image.new("RGB", size, background)
    width, height = size
    drawn = draw_detections(image, [Detection("", (width * 0.25, height * 0.25, width * 0.75, height * 0.75))])
    marks = changed(image, drawn)
    assert shows(drawn, label_color(""))[height // 4 - 1, width // 2]
    assert shows(drawn, label_color(""))[height // 2, width // 4 - 1]
    assert not marks[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4].any()
    assert not marks[: height // 8].any()


@pytest.mark.parametrize("background", [*PALETTE, (0, 0, 0), (255, 255, 255), (128, 128, 128)])
def test_a_box_can_be_told_from_any_background(background):
    image = Image.new("RGB", (64, 64), background)
    for label in WORDS:
        across = np.asarray(draw_detections(image, [Detection(label, (20, 20, 44, 44))]))[30, 32:50]
        # of two colours with a contrast of 4.5 one has at least its square root, 2.1, to any third
        assert max(contrast(pixel, background) for pixel in across) >= 2.1, label


@pytest.mark.parametrize("size", [(1, 1), (3, 64), (64, 64), (448, 300), (20000, 10)])
def test_a_box_as_large_as_the_picture_shows_all_four_sides(size):
    image = Image.new("RGB", size, "gray")
    marks = changed(image, draw_detections(image, [Detection("", (0, 0, *size))]))
    for side in (marks[0], marks[-1], marks[:, 0], marks[:, -1]):
        assert side.all()


def test_the_line_grows_with_the_picture():
    counts = []
    for side in (100, 1000):
        image = Image.new("RGB", (side, side), "gray")
        drawn = draw_detections(image, [Detection("", (side * 0.2, side * 0.2, side * 0.8, side * 0.8))])
        counts.append(changed(image, drawn)[side // 2].sum())
    assert 2 <= counts[0] <= 6
    assert counts[1] >= 2 * counts[0]


def test_a_small_box_is_drawn_over_a_large_one_whatever_their_order():
    large, small = Detection("cat", (10, 10, 190, 190)), Detection("dog", (9, 60, 60, 120))
    image = Image.new("RGB", (200, 200), "gray")
    first, second = draw_detections(image, [large, small]), draw_detections(image, [small, large])
    assert np.array_equal(np.asarray(first), np.asarray(second))
    assert shows(first, label_color("dog"))[90, 8]


def disc(side, center, radius):
    y, x = np.ogrid[:side, :side]
    return (x - center[0]) ** 2 + (y - center[1]) ** 2 <= radius**2


def test_a_mask_tints_its_pixels_and_no_others():
    image = Image.new("RGB", (100, 100), (200, 200, 200))
    mask = disc(100, (50, 50), 12)
    drawn = draw_detections(image, [Detection("", (20, 20, 80, 80), mask=mask)])
    inside = changed(image, drawn)[25:75, 25:75]
    assert np.array_equal(inside, mask[25:75, 25:75])


def test_the_tint_lets_the_picture_through():
    image = Image.fromarray(np.tile(np.array([[[40] * 3, [220] * 3]], np.uint8), (100, 50, 1)))
    drawn = draw_detections(image, [Detection("", (10, 10, 90, 90), mask=disc(100, (50, 50), 30))])
    dark, bright = np.asarray(drawn)[50, 50:52].astype(int)
    assert (abs(dark - bright) >= 60).all()
    assert (dark != 40).any()


@pytest.mark.parametrize("side", [64, 448, 2000])
@pytest.mark.parametrize("background", ["black", "white", label_color("cat")])
def test_a_mask_has_an_outline_of_full_colour_with_an_edge_of_ink(side, background):
    image = Image.new("RGB", (side, side), background)
    mask = disc(side, (side // 2, side // 2), side // 4)
    drawn = draw_detections(image, [Detection("cat", (0, 0, side, side), mask=mask)])
    row = [tuple(int(value) for value in pixel) for pixel in np.asarray(drawn)[side // 2][mask[side // 2]]]
    color, edge = label_color("cat"), ink(label_color("cat"))
    parts = [pixel for pixel, _ in itertools.groupby(row)]
    tint = parts[len(parts) // 2]
    assert parts in ([edge, color, tint, color, edge], [edge, color, edge])  # the latter where the background has the colour


def test_the_outline_of_a_mask_runs_along_the_edge_of_the_picture_too():
    image = Image.new("RGB", (100, 100), "gray")
    drawn = draw_detections(image, [Detection("cat", (30, 30, 60, 60), mask=np.ones((100, 100), dtype=bool))])
    assert shows(drawn, ink(label_color("cat")))[0, 10:90].all()
    assert shows(drawn, label_color("cat"))[10:90, 98].all()


def test_an_empty_mask_draws_nothing_and_a_mask_of_one_pixel_is_seen():
    image = Image.new("RGB", (50, 50), "gray")
    mask = np.zeros((50, 50), dtype=bool)
    plain = draw_detections(image, [Detection("", (5, 5, 45, 45))])
    assert np.array_equal(np.asarray(draw_detections(image, [Detection("", (5, 5, 45, 45), mask=mask)])), np.asarray(plain))
    mask[20, 30] = True
    assert changed(plain, draw_detections(image, [Detection("", (5, 5, 45, 45), mask=mask)])).sum() == 1


def test_a_mask_of_another_picture_is_refused_in_one_line():
    with pytest.raises(ImageError, match="a mask is 40 x 30, the picture 50 x 50") as caught:
        draw_detections(Image.new("RGB", (50, 50)), [Detection("cat", (0, 0, 5, 5), mask=np.ones((30, 40), dtype=bool))])
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_the_picture_given_stays_as_it_was(mode):
    image = Image.new("RGB", (50, 50), "red").convert(mode)
    before = image.tobytes()
    drawn = draw_detections(image, [Detection("cat", (5, 5, 40, 40), 0.5, np.ones((50, 50), dtype=bool))])
    assert image.tobytes() == before
    assert drawn.mode == "RGB"


def test_a_label_at_the_edge_stays_in_the_picture_and_can_be_read():
    image = Image.new("RGB", (300, 200), "white")
    drawn = draw_detections(image, [Detection("elephant", (280, 0, 300, 20), 0.98)])
    strip = changed(image, drawn)
    assert shows(drawn, label_color("elephant"))[:60, 180:].sum() > 500
    assert not strip[:, :180].any()


@pytest.mark.parametrize("side", [448, 2000])
@pytest.mark.parametrize("background", ["black", "white"])
def test_a_label_is_as_legible_on_dark_as_on_light(side, background):
    image = Image.new("RGB", (side, side), background)
    box = (side * 0.3, side * 0.3, side * 0.8, side * 0.8)
    named, plain = (draw_detections(image, [Detection(label, box, 0.87)]) for label in ("cat", ""))
    bare = draw_detections(image, [Detection("", box)])
    assert changed(bare, plain).any(), "a score without a label is shown"
    strip = changed(image, named) & ~changed(image, bare)
    pixels = np.asarray(named)[: int(side * 0.28)][strip[: int(side * 0.28)]]
    assert (pixels == label_color("cat")).all(axis=-1).any()
    assert strip[: int(side * 0.28)].sum() >= 0.0015 * side**2


def test_two_labels_of_one_place_are_both_seen():
    image = Image.new("RGB", (448, 448), "gray")
    box = (100, 100, 300, 300)
    alone = [shows(draw_detections(image, [Detection(label, box, 0.9)]), label_color(label)).sum() for label in ("cat", "dog")]
    both = draw_detections(image, [Detection("cat", box, 0.9), Detection("dog", box, 0.9)])
    line = shows(draw_detections(image, [Detection("", box)]), label_color("")).sum()
    for label, count in zip(("cat", "dog"), alone, strict=True):
        assert shows(both, label_color(label)).sum() >= count - line


@pytest.mark.parametrize("background", ["black", "white"])
def test_in_a_tiny_picture_labels_give_way_to_boxes(background):
    image = Image.new("RGB", (64, 64), background)
    boxes = [(x, y, x + 14, y + 14) for x in (2, 24, 46) for y in (2, 24, 46)]
    items = [Detection(f"{word} with a long name", box, 0.9) for word, box in zip(WORDS, boxes, strict=False)]
    drawn = draw_detections(image, items)
    colors = label_colors(item.label for item in items)
    for item in items:
        x0, y0, x1, y1 = item.box
        around = shows(drawn, colors[item.label])[max(0, y0 - 2) : y1 + 2, max(0, x0 - 2) : x1 + 2]
        assert around.sum() >= 20, item.box  # of about 60 pixels of line


def test_a_lone_label_is_shown_even_in_a_tiny_picture():
    image = Image.new("RGB", (64, 64), "white")
    unnamed, named = (draw_detections(image, [Detection(label, (20, 25, 50, 55))]) for label in ("", "cat"))
    assert changed(image, named)[:22].sum() > 100
    assert not changed(image, unnamed)[:22].any()


@pytest.mark.parametrize("size", [(1, 1), (2, 500), (64, 64), (20000, 10)])
@pytest.mark.parametrize(
    "label", ["été à Köln", "猫と犬", "🐱", "مرحبا", "a\nb\tc", "\x00\x1b", "\udcff", " ", "word " * 200, "W" * 500]
)
def test_any_label_can_be_drawn_on_any_picture(label, size):
    image = Image.new("RGB", size, "gray")
    drawn = draw_detections(image, [Detection(label, (0, 0, *size), 0.5, np.ones(size[::-1], dtype=bool))])
    assert drawn.size == size


def test_boxes_outside_the_picture_do_no_harm():
    image = Image.new("RGB", (50, 40), "gray")
    for box in [(-30, -20, 10, 10), (60, 50, 80, 70), (-9, -9, -5, -5), (20.2, 20.2, 20.4, 20.4)]:
        assert draw_detections(image, [Detection("cat", box, 0.5)]).size == (50, 40)


def test_a_label_has_one_colour_in_every_run():
    assert label_color("cat") == (0, 128, 128)  # from a checksum of the text, not from Python's hash, which varies
    assert len({label_color(name) for name in WORDS}) >= 8


def test_labels_of_one_picture_have_different_colours_in_whatever_order_they_come():
    colors = label_colors(WORDS)
    assert len(WORDS) == len(PALETTE)
    assert {*colors.values()} == {*PALETTE}
    assert colors == label_colors(reversed(WORDS * 2))
    assert label_colors(["dog"]) == {"dog": label_color("dog")}


def test_more_labels_than_colours_share_them_evenly():
    shared = [*label_colors(str(number) for number in range(2 * len(PALETTE))).values()]
    assert {shared.count(color) for color in PALETTE} == {2}


def test_every_colour_can_be_read_with_its_ink_and_told_from_the_others():
    for color in PALETTE:
        assert contrast(color, ink(color)) >= 4.5, color  # WCAG's least for text
    for a, b in itertools.combinations(PALETTE, 2):
        assert np.linalg.norm(np.subtract(a, b)) >= 60, (a, b)
