"""Masks in other programs' forms: nothing is lost on the way but holes."""

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from mlx_paligemma.common.masks import decode_rle, encode_rle, mask_polygons, save_mask

ROWS, COLUMNS = np.mgrid[:90, :120]
DISC = (ROWS - 40) ** 2 + (COLUMNS - 55) ** 2 < 30**2
SHAPES = {
    "disc": DISC,
    "small disc": (ROWS - 11) ** 2 + (COLUMNS - 100) ** 2 <= 10**2,
    "triangle": (ROWS > 20) & (ROWS < 70) & (abs(COLUMNS - 60) < ROWS - 20),
    "slanted": abs(ROWS - 0.6 * COLUMNS - 5) < 10,
    "at all edges": (ROWS < 20) | (COLUMNS < 20) | (COLUMNS > 99),
    "two parts": (abs(COLUMNS - 60) > 20) & (abs(ROWS - 45) < 30),
    "two that touch at a corner": ((ROWS < 40) & (COLUMNS < 50)) | ((ROWS >= 40) & (COLUMNS >= 50)),
    "one pixel": (ROWS == 3) & (COLUMNS == 7),
    "one row": ROWS == 89,
}


def rasterised(polygons, height, width):
    """What pycocotools, which is the reference for COCO files, makes of polygons."""
    codes = coco.frPyObjects([polygon.ravel().tolist() for polygon in polygons], height, width)
    return coco.decode(coco.merge(codes)).astype(bool)


def overlap(one, other):
    return (one & other).sum() / (one | other).sum()


@pytest.mark.parametrize("mask", SHAPES.values(), ids=SHAPES.keys())
def test_polygons_cover_the_mask_exactly(mask):
    assert overlap(rasterised(mask_polygons(mask), *mask.shape), mask) == 1


def test_noise_comes_back_nearly_whole():
    """Its holes are one pixel wide, and filled."""
    mask = np.random.default_rng(0).random((60, 80)) > 0.7
    assert overlap(rasterised(mask_polygons(mask), *mask.shape), mask) > 0.95


def test_a_full_mask_is_its_four_corners():
    (polygon,) = mask_polygons(np.ones((3, 5), dtype=bool))
    assert sorted(map(tuple, polygon.tolist())) == [(0, 0), (0, 3), (5, 0), (5, 3)]


def test_each_part_is_a_polygon_of_its_own_where_it_stands():
    mask = np.zeros((50, 60), dtype=bool)
    mask[5:10, 20:40] = mask[30:45, 10:13] = True
    found = [(*polygon.min(axis=0), *polygon.max(axis=0)) for polygon in mask_polygons(mask)]
    assert sorted(found) == [(10, 30, 13, 45), (20, 5, 40, 10)]


def test_a_hole_is_filled_and_an_island_in_it_is_kept():
    ring = DISC & ((ROWS - 40) ** 2 + (COLUMNS - 55) ** 2 > 20**2)
    assert (rasterised(mask_polygons(ring), *ring.shape) == DISC).all()
    assert len(mask_polygons(ring | ((ROWS - 40) ** 2 + (COLUMNS - 55) ** 2 < 9))) == 2


def test_an_empty_mask_has_no_polygons():
    assert mask_polygons(np.zeros((4, 4), dtype=bool)) == []


@pytest.mark.parametrize("mask", [*SHAPES.values(), np.zeros((4, 6), dtype=bool)], ids=[*SHAPES, "empty"])
def test_a_run_length_code_gives_the_mask_back(mask):
    code = encode_rle(mask)
    assert code["size"] == list(mask.shape)
    assert decode_rle(code).dtype == bool
    assert (decode_rle(code) == mask).all()


def test_a_mask_file_is_black_and_white(tmp_path):
    save_mask(DISC, tmp_path / "mask.png")
    saved = Image.open(tmp_path / "mask.png")
    assert saved.mode == "L"
    assert (np.asarray(saved) == np.where(DISC, 255, 0)).all()
