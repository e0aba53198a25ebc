"""What a model writes about places is found in any text, and places become text and pixels without losing more than a bin."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_paligemma.common.errors import PromptError
from mlx_paligemma.common.locations import (
    Location,
    count_dropped,
    crop_mask,
    format_detections,
    format_location,
    parse_detections,
    parse_locations,
    paste_mask,
)
from mlx_paligemma.common.results import Detection, Detections

CODES = tuple(range(16))
SEGS = "".join(f"<seg{code:03d}>" for code in CODES)
BOX = "<loc0256><loc0128><loc0768><loc0512>"  # y0 x0 y1 x1
CORNERS = (0.125, 0.25, 0.5, 0.75)  # x0 y0 x1 y1


def locs(*bins) -> str:
    return "".join(f"<loc{value:04d}>" for value in bins)


def test_an_object_has_a_label_and_a_box_in_fractions():
    assert parse_locations(f"{BOX} cat") == [Location("cat", CORNERS)]


def test_bins_are_1024ths_in_the_order_top_left_bottom_right():
    assert parse_locations(locs(0, 1, 512, 1023))[0].box == (1 / 1024, 0, 1023 / 1024, 0.5)


@pytest.mark.parametrize(
    "label", ["traffic light", "l'homme à la crêpe", "漢字", "3 cats, 1 dog", 'it\'s "red"', "a-b_c (d)", "naïve 😀", ""]
)
def test_a_label_may_hold_anything_but_marks(label):
    assert parse_locations(f"{BOX} {label}") == [Location(label, CORNERS)]
    assert parse_locations(f"{BOX}{SEGS} {label}") == [Location(label, CORNERS, CODES)]


def test_several_objects_are_found_in_their_order():
    text = f"{BOX} cat ; {locs(1, 2, 3, 4)} dog ; {BOX}{SEGS} cat"
    assert [location.label for location in parse_locations(text)] == ["cat", "dog", "cat"]
    assert [len(location.codes) for location in parse_locations(text)] == [0, 0, 16]


@pytest.mark.parametrize("separator", [" ; ", ";", " ;", "; ", " ", "", "\n"])
def test_any_separator_will_do(separator):
    found = parse_locations(separator.join([f"{BOX} cat"] * 3))
    assert found == [Location("cat", CORNERS)] * 3


@pytest.mark.parametrize("text", [f"{BOX} cat", f"a cat: {BOX} cat", f"{BOX} cat; that is all", f"x ; y <b> {BOX} cat < 3 ; z"])
def test_text_around_an_object_is_left_out(text):
    assert [location.label for location in parse_locations(text)] == ["cat"]


def test_blanks_between_a_box_and_its_codes_do_no_harm():
    assert parse_locations(f"{BOX} {SEGS}cat") == [Location("cat", CORNERS, CODES)]


@pytest.mark.parametrize(
    "text", ["", "no", "a cat", "<loc0001>", locs(1, 2, 3), f"{SEGS} cat", "<loc1><loc2><loc3><loc4>", "cat ; dog"]
)
def test_text_without_a_whole_box_holds_no_object(text):
    assert parse_locations(text) == []


@pytest.mark.parametrize("end", ["<loc0001>", "<loc0001><loc0002><loc0003>", "<loc0001><loc0002><loc0003><loc00", "; <lo", " ; "])
def test_a_last_object_that_was_cut_short_is_left_out(end):
    assert parse_locations(f"{BOX} cat ; {end}") == [Location("cat", CORNERS)]


def test_a_box_whose_codes_were_cut_short_stays_a_box():
    assert parse_locations(f"{BOX}{SEGS[:-9]}") == [Location("", CORNERS)]
    assert parse_locations(f"{BOX}{SEGS[:-8]} cat") == [Location("cat", CORNERS)]
    assert parse_locations(f"{BOX}{SEGS}<seg001> cat") == [Location("cat", CORNERS, CODES)]


@pytest.mark.parametrize("bins", [(5, 5, 5, 9), (5, 5, 9, 5), (9, 5, 5, 9), (5, 9, 9, 5), (0, 0, 1024, 9), (1, 1, 9, 9999)])
def test_an_empty_a_reversed_and_an_impossible_box_are_left_out(bins):
    assert parse_locations(f"{locs(*bins)} cat ; {BOX} dog") == [Location("dog", CORNERS)]


def test_impossible_codes_leave_the_object_out():
    assert parse_locations(f"{BOX}{SEGS.replace('015', '128')} cat") == []


def test_a_formatted_object_comes_back_within_half_a_bin():
    rng = random.Random(0)
    for _ in range(2000):
        x0, y0 = rng.uniform(0, 0.99), rng.uniform(0, 0.99)
        box = (x0, y0, rng.uniform(x0 + 0.005, 1), rng.uniform(y0 + 0.005, 1))
        codes = tuple(rng.randrange(128) for _ in range(rng.choice([0, 16])))
        label = "".join(rng.choice("abc é'-") for _ in range(rng.randrange(8))).strip()
        (found,) = parse_locations(f"so: {format_location(box, label, codes)} ; ")
        assert (found.label, found.codes) == (label, codes)
        for value, back in zip(box, found.box, strict=True):
            assert abs(value - back) <= (0.5 / 1024 if value <= 1023 / 1024 else 1 / 1024) + 1e-12


def test_every_bin_comes_back_exactly():
    for value in range(1023):
        (found,) = parse_locations(format_location((value / 1024, value / 1024, 1023 / 1024, 1023 / 1024), "x"))
        assert found.box == (value / 1024, value / 1024, 1023 / 1024, 1023 / 1024)


def test_a_box_beyond_the_picture_is_clipped():
    assert format_location((-0.5, 0, 1, 7), "x") == f"{locs(0, 0, 1023, 1023)} x"


def test_an_object_without_a_label_is_its_tokens_alone():
    assert format_location(CORNERS, "") == BOX
    assert format_location(CORNERS, "", CODES) == BOX + SEGS


def test_boxes_are_in_pixels_of_the_picture():
    (found,) = parse_detections(f"{BOX} cat", width=640, height=480)
    assert (found.label, found.box, found.score, found.mask) == ("cat", (80, 120, 320, 360), None, None)


def test_without_a_decoder_masks_are_left_out_and_boxes_stay():
    (found,) = parse_detections(f"{BOX}{SEGS} cat", width=64, height=64)
    assert found.mask is None


def test_all_masks_of_an_answer_are_decoded_at_once_and_each_goes_to_its_object():
    calls = []

    def decode(codes):
        calls.append(codes)
        return np.where(codes[:, :1, None] == 7, 1.0, -1.0) * np.ones((len(codes), 64, 64))  # full where the first code is 7

    full = SEGS.replace("<seg000>", "<seg007>")
    found = parse_detections(f"{BOX}{SEGS} a ; {BOX} b ; {BOX}{full} c", width=64, height=32, decode_masks=decode)
    assert [codes.shape for codes in calls] == [(2, 16)]
    assert [None if d.mask is None else int(d.mask.sum()) for d in found] == [0, None, 24 * 16]
    assert all(d.mask is None or (d.mask.shape == (32, 64) and d.mask.dtype == bool) for d in found)


def test_a_decoder_is_not_asked_where_no_mask_is():
    assert len(parse_detections(f"{BOX} cat", 9, 9, decode_masks=lambda codes: pytest.fail("asked"))) == 1


FULL = np.ones((64, 64), dtype=np.float32)


@pytest.mark.parametrize(
    ("box", "region"),
    [
        ((10, 5, 30, 25), (10, 5, 30, 25)),
        ((0, 0, 40, 30), (0, 0, 40, 30)),
        ((9.6, 4.6, 30.4, 25.4), (10, 5, 30, 25)),
        ((39, 29, 40, 30), (39, 29, 40, 30)),
        ((3, 0, 4, 30), (3, 0, 4, 30)),
    ],
)
def test_a_full_mask_fills_exactly_its_rounded_box(box, region):
    x0, y0, x1, y1 = region
    expected = np.zeros((30, 40), dtype=bool)
    expected[y0:y1, x0:x1] = True
    assert np.array_equal(paste_mask(FULL, box, width=40, height=30), expected)


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (5.1, 5, 5.4, 9), (9, 5, 5, 9), (5, 9, 9, 5)])
def test_a_mask_of_an_empty_box_is_empty(box):
    assert not paste_mask(FULL, box, width=40, height=30).any()


def test_a_mask_keeps_its_sides():
    mask = -FULL
    mask[:16, 32:] = 1  # a quarter of the height at the top, half of the width at the right
    pasted = paste_mask(mask, (8, 4, 40, 28), width=50, height=30)
    expected = np.zeros((30, 50), dtype=bool)
    expected[4:10, 24:40] = True
    assert np.array_equal(pasted, expected)


def test_only_values_above_zero_are_inside():
    assert not paste_mask(FULL * -0.01, (0, 0, 40, 30), 40, 30).any()
    assert paste_mask(FULL * 0.01, (0, 0, 40, 30), 40, 30).all()
    assert paste_mask(FULL * 50, (0, 0, 40, 30), 40, 30).all()


def test_a_disc_stays_a_disc_of_the_right_size():
    y, x = np.mgrid[:64, :64] - 31.5
    pasted = paste_mask(np.where(x**2 + y**2 < 24**2, 1.0, -1.0), (0, 0, 256, 128), width=256, height=128)
    ys, xs = np.nonzero(pasted)
    assert pasted.sum() == pytest.approx(np.pi * 24**2 * 4 * 2, rel=0.02)
    assert (xs.mean(), ys.mean()) == pytest.approx((127.5, 63.5), abs=0.2)


@st.composite
def objects(draw):
    """A picture's size, and objects in it with boxes of at least two bins."""
    width, height = draw(st.integers(1, 9000)), draw(st.integers(1, 9000))
    edge = st.floats(0, 1)
    labels = st.text(st.characters(exclude_characters="<>;", exclude_categories=["Cs"]), max_size=20).map(str.strip)
    items = []
    for label, ends_x, ends_y in draw(st.lists(st.tuples(labels, st.tuples(edge, edge), st.tuples(edge, edge)), max_size=5)):
        (x0, x1), (y0, y1) = sorted(ends_x), sorted(ends_y)
        if min(x1 - x0, y1 - y0) > 2 / 1023:
            items.append(Detection(label, (x0 * width, y0 * height, x1 * width, y1 * height)))
    return Detections(tuple(items), width, height)


@given(objects(), st.sampled_from([1023, 1024]))
def test_objects_become_text_and_come_back_within_half_a_bin(detections, bins):
    text = format_detections(detections, bins=bins)
    back = parse_detections(text, detections.width, detections.height, bins=bins)
    assert [found.label for found in back] == [wanted.label for wanted in detections]
    assert back.dropped == 0
    farthest = (0.5 if bins == 1023 else 1) / bins * (1 + 1e-9)  # with 1024 the far edge is a whole bin away, elsewhere half
    for found, wanted in zip(back, detections, strict=True):
        for i, (a, b) in enumerate(zip(found.box, wanted.box, strict=True)):
            side = detections.width if i % 2 == 0 else detections.height
            assert abs(a - b) <= farthest * side
            assert abs(a - b) <= 0.5 / bins * side * (1 + 1e-9) or b > (1 - 0.5 / 1024) * side


def test_bins_are_1023rds_where_an_evaluation_wants_it():
    (found,) = parse_detections(f"{locs(0, 0, 1023, 1023)} cat", 640, 480, bins=1023)
    assert found.box == (0, 0, 640, 480)
    assert format_location((0, 0, 1, 1), "cat", bins=1023) == f"{locs(0, 0, 1023, 1023)} cat"
    assert format_location((0, 0, 0.5, 0.5), "", bins=1023) == locs(0, 0, 512, 512)


@pytest.mark.parametrize(
    ("text", "dropped"),
    [
        (f"{BOX} cat", 0), ("no cat", 0), ("", 0), (f"{BOX} cat ; <loc0001>", 1), (f"{BOX}<loc0001> cat", 1),
        (f"{BOX}{BOX} cat", 0),
        (f"{locs(9, 9, 1, 1)} cat ; {BOX} dog ; {locs(5, 5, 5, 9)}", 2), (f"{locs(1, 2, 3)} cat ; {locs(1, 2, 3)} dog", 2),
        (f"{BOX}{SEGS.replace('015', '128')} cat", 1),
    ],
)  # fmt: skip
def test_objects_that_are_none_are_counted(text, dropped):
    assert count_dropped(text) == parse_detections(text, 9, 9).dropped == dropped


@pytest.mark.parametrize("label", ["a;b", "<b", "x > y"])
def test_a_label_that_would_not_come_back_is_refused(label):
    with pytest.raises(PromptError, match="holds one of < > ;"):
        format_location((0, 0, 1, 1), label)


def test_a_score_is_the_geometric_mean_over_the_four_loc_tokens():
    start = len("so: ")
    nearby = {start + 9 * i: value for i, value in enumerate((0.9, 0.8, 0.5, 1.0))} | {0: 0.1}
    (found,) = parse_detections(f"so: {BOX} cat", 9, 9, nearby=nearby)
    assert found.score == pytest.approx(math.sqrt(math.sqrt(0.9 * 0.8 * 0.5 * 1.0)))
    assert parse_detections(f"so: {BOX} cat", 9, 9)[0].score is None
    assert parse_detections(f"so: {BOX} cat", 9, 9, nearby={start: 1.0})[0].score is None  # spelt out, not by loc tokens


def test_a_cropped_mask_is_stretched_to_the_codec_and_pastes_back():
    y, x = np.mgrid[:90, :120]
    mask = ((x - 60) / 25) ** 2 + ((y - 40) / 15) ** 2 < 1
    box = (35, 25, 85, 55)
    crop = crop_mask(mask, box)
    assert (crop.shape, crop.dtype, crop.min(), crop.max()) == ((64, 64), np.float32, 0, 1)
    back = paste_mask(2 * crop - 1, box, width=120, height=90)
    assert (back & mask).sum() / (back | mask).sum() > 0.97
    assert not crop_mask(mask, (5, 5, 5, 9)).any()


def test_masks_become_codes_where_there_is_an_encoder():
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:10, 5:15] = True
    detections = Detections((Detection("cat", (5, 5, 15, 10), mask=mask), Detection("dog", (0, 0, 10, 10))), 20, 20)
    asked = []
    text = format_detections(detections, lambda crops: asked.append(crops) or np.array([CODES]))
    assert text == f"{locs(256, 256, 512, 768)}{SEGS} cat ; {locs(0, 0, 512, 512)} dog"
    assert [crops.shape for crops in asked] == [(1, 64, 64)]
    assert asked[0].all()
    assert SEGS not in format_detections(detections)


def test_a_mask_file_of_0_and_255_is_a_mask_too():
    mask = np.zeros((20, 20), dtype=np.uint8)
    mask[5:10, 5:15] = 255
    assert crop_mask(mask, (5, 5, 15, 10)).all()


def test_a_box_over_the_edge_is_cut_and_its_mask_with_it():
    mask = np.zeros((20, 20), dtype=bool)
    mask[0:10, 0:10] = True
    asked = []
    detections = Detections((Detection("cat", (-10, -10, 10, 10), mask=mask),), 20, 20)
    text = format_detections(detections, lambda crops: asked.append(crops) or np.array([CODES]))
    assert text == f"{locs(0, 0, 512, 512)}{SEGS} cat"
    assert asked[0].all()


@pytest.mark.parametrize(
    ("detection", "words"),
    [
        (Detection("cat", (0, 0, math.nan, 1)), "finite"),
        (Detection("cat", (0, 0, math.inf, 1)), "finite"),
        (Detection("cat", (0, 0, 9, 9), mask=np.ones((20, 30), dtype=bool)), "20 x 30"),
    ],
)
def test_an_object_that_cannot_be_written_is_refused(detection, words):
    with pytest.raises(PromptError, match=words):
        format_detections(Detections((detection,), 20, 30))
