"""Detections are a sequence that keeps its picture's size, and become supervision's."""

import sys

import numpy as np
import pytest

from mlx_paligemma.common.errors import BackendError
from mlx_paligemma.common.results import Detection, Detections

pytestmark = pytest.mark.filterwarnings("ignore:OpenCV")  # supervision works without it, and says so
WIDTH, HEIGHT = 60, 40


def detection(label: str, score: float | None = None, box=(10.0, 5.0, 30.0, 25.0), masked: bool = False) -> Detection:
    """With a mask, it fills the box."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    x0, y0, x1, y1 = (int(value) for value in box)
    mask[y0:y1, x0:x1] = True
    return Detection(label, box, score, mask if masked else None)


def detections(*items: Detection) -> Detections:
    return Detections(items, WIDTH, HEIGHT, dropped=2)


CAT, DOG, BIRD = detection("cat", 0.9), detection("dog", 0.5, box=(0.0, 0.0, 5.5, 7.25)), detection("bird", 0.2)
PETS = detections(CAT, DOG, BIRD)


def test_detections_are_counted_indexed_and_walked_in_their_order():
    assert len(PETS) == 3
    assert [item.label for item in PETS] == ["cat", "dog", "bird"]
    assert PETS[0] is CAT
    assert PETS[-1] is BIRD
    assert DOG in PETS
    assert [item.label for item in reversed(PETS)] == ["bird", "dog", "cat"]
    with pytest.raises(IndexError):
        PETS[3]


def test_a_slice_keeps_the_size_of_the_picture():
    some = PETS[1:]
    assert isinstance(some, Detections)
    assert [*some] == [DOG, BIRD]
    assert (some.width, some.height, some.dropped) == (WIDTH, HEIGHT, 2)
    assert [*PETS[::-1]] == [BIRD, DOG, CAT]


def test_no_detections_are_false():
    assert not detections()
    assert PETS


def test_above_keeps_what_reaches_the_score_and_what_has_none():
    unknown = detection("ghost")
    kept = detections(CAT, DOG, BIRD, unknown).above(0.5)
    assert [*kept] == [CAT, DOG, unknown]
    assert (kept.width, kept.height, kept.dropped) == (WIDTH, HEIGHT, 2)
    assert [*PETS.above(0.0)] == [CAT, DOG, BIRD]
    assert not PETS.above(0.95)


def test_values_cannot_be_changed():
    with pytest.raises(AttributeError):
        CAT.label = "dog"
    with pytest.raises(AttributeError):
        PETS.width = 1


@pytest.fixture(scope="module")
def sv():
    return pytest.importorskip("supervision", reason="supervision is not installed: pip install supervision")


def test_supervision_gets_the_boxes_scores_and_labels(sv):
    found = PETS.to_supervision()
    assert isinstance(found, sv.Detections)
    assert found.xyxy.tolist() == [[10, 5, 30, 25], [0, 0, 5.5, 7.25], [10, 5, 30, 25]]
    assert np.allclose(found.confidence, [0.9, 0.5, 0.2], atol=1e-7)  # one float32 rounding
    assert found.data["class_name"].tolist() == ["cat", "dog", "bird"]
    assert found["class_name"][found.confidence > 0.4].tolist() == ["cat", "dog"]
    assert found.mask is None


def test_one_label_has_one_class_number_in_order_of_appearance(sv):
    found = detections(DOG, CAT, DOG, BIRD, CAT).to_supervision()
    assert found.class_id.tolist() == [0, 1, 0, 2, 1]


def test_supervision_gets_the_masks_and_one_that_is_missing_is_empty(sv):
    masked = detection("cat", 0.9, masked=True)
    found = detections(masked, DOG).to_supervision()
    assert found.mask.shape == (2, HEIGHT, WIDTH)
    assert found.mask.dtype == bool
    assert np.array_equal(found.mask[0], masked.mask)
    assert not found.mask[1].any()
    assert found.area.tolist() == [400, 0]  # pixels of the masks


def test_confidence_is_left_out_unless_every_object_has_a_score(sv):
    assert detections(CAT, detection("ghost")).to_supervision().confidence is None


def test_no_detections_are_supervisions_empty_ones(sv):
    found = detections().to_supervision()
    assert len(found) == 0
    assert found.is_empty()
    assert len(sv.Detections.merge([found, PETS.to_supervision()])) == 3


def test_supervisions_annotators_draw_them(sv):
    scene = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    found = detections(detection("cat", 0.9, masked=True)).to_supervision()
    boxes = sv.BoxAnnotator(thickness=1).annotate(scene.copy(), found)
    assert boxes[5, 10:30].any(axis=-1).all()
    assert not boxes[10:20, 15:25].any()
    masks = sv.MaskAnnotator().annotate(scene.copy(), found)
    assert np.array_equal(masks.any(axis=-1), found.mask[0])
    assert np.array_equal(sv.BoxAnnotator().annotate(scene.copy(), detections().to_supervision()), scene)


def test_without_supervision_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(BackendError, match="pip install supervision") as caught:
        PETS.to_supervision()
    assert str(caught.value).isprintable()
    assert caught.value.__suppress_context__
