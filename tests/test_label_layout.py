"""Labels lie in the picture, near their boxes, and off one another where there is room."""

import itertools

import pytest

from mlx_paligemma.common.label_layout import LabelLayout

PICTURE = (400, 300)
STRIP = (60, 14)


def shared(a, b):
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def test_a_lone_label_stands_on_its_box():
    assert LabelLayout(PICTURE, []).place(STRIP, (100, 100, 200, 200)) == (100, 86, 160, 100)


@pytest.mark.parametrize("box", [(0, 0, 20, 20), (390, 0, 400, 10), (0, 290, 10, 300), (380, 280, 420, 320), (-50, -50, -10, -10)])
def test_a_label_is_moved_inside_the_picture(box):
    x0, y0, x1, y1 = LabelLayout(PICTURE, [box]).place(STRIP, box)
    assert 0 <= x0 < x1 <= PICTURE[0]
    assert 0 <= y0 < y1 <= PICTURE[1]
    assert (x1 - x0, y1 - y0) == STRIP


def test_labels_of_one_box_avoid_one_another():
    box = (100, 100, 300, 250)
    layout = LabelLayout(PICTURE, [box])
    places = [layout.place(STRIP, box) for _ in range(12)]
    assert all(shared(a, b) == 0 for a, b in itertools.combinations(places, 2))


def test_a_label_leaves_a_small_box_below_it_free():
    box, small = (100, 100, 200, 200), (100, 84, 130, 98)
    assert shared(LabelLayout(PICTURE, [box, small]).place(STRIP, box), small) == 0
    tiny_at_the_top = (50, 0, 70, 12)
    assert shared(LabelLayout(PICTURE, [tiny_at_the_top]).place(STRIP, tiny_at_the_top), tiny_at_the_top) == 0


def test_without_room_a_label_overlaps_or_is_left_out_as_wished():
    box = (0, 0, 60, 30)
    layout = LabelLayout((140, 100), [])
    layout.taken = [(0, 0, 140, 100)]
    assert layout.place(STRIP, box, overlap=False) is None
    assert layout.place(STRIP, box) is not None


@pytest.mark.parametrize(
    ("strip", "picture"), [((60, 14), (59, 1000)), ((60, 14), (20000, 10)), ((60, 14), (90, 90)), ((9, 9), (1, 1))]
)
def test_a_label_too_large_for_the_picture_is_left_out(strip, picture):
    assert LabelLayout(picture, []).place(strip, (0, 0, *picture)) is None
