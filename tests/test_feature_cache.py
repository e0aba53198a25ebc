"""A picture is encoded once, in a batch and from call to call, and the answers are those without a cache."""

import numpy as np
import pytest
from checkpoints import config, tokenizer
from PIL import Image

import mlx_paligemma
import torch_ref
from mlx_paligemma import FeatureCache
from mlx_paligemma.common.errors import OptionError
from mlx_paligemma.common.feature_cache import PICTURES_AT_ONCE, picture_features, picture_key
from mlx_paligemma.common.processor import PaliGemmaProcessor
from mlx_paligemma.demo.scenes import draw_scene

PROMPTS = ["caption en", "answer en how many shapes are there?", "detect star ; circle", "segment heart"]
SCENES = [draw_scene(np.random.default_rng(i), size=112, number=False).image for i in range(3)]
PROCESSOR = PaliGemmaProcessor(config(), tokenizer())


class Model:
    """Something that features can belong to."""


def plain(color):
    return Image.new("RGB", (8, 8), color)


class Encoder:
    """Encodes a picture as its first pixel, and remembers how many it was given at a time."""

    def __init__(self):
        self.calls = []

    def __call__(self, pixels):
        self.calls.append(len(pixels))
        return [picture[0, 0] for picture in pixels]


def encoded(images, encode, features=None, model=None):
    return picture_features(model or MODEL, PROCESSOR(images, ["caption en"] * len(images)), encode, features)


MODEL = Model()


def test_each_picture_of_a_batch_is_encoded_once_and_lands_in_its_place():
    encode = Encoder()
    found = encoded([plain("red"), [plain("blue"), plain("red")], plain("blue")], encode)
    assert encode.calls == [2]
    assert [[None if rows is None else rows.round().tolist() for rows in row] for row in found] == [
        [[1, -1, -1], None], [[-1, -1, 1], [1, -1, -1]], [[-1, -1, 1], None],
    ]  # fmt: skip


def test_pictures_are_encoded_a_few_at_a_time():
    encode = Encoder()
    encoded([[plain((i, 0, 0)) for i in range(2 * PICTURES_AT_ONCE + 1)]], encode)
    assert encode.calls == [PICTURES_AT_ONCE, PICTURES_AT_ONCE, 1]


def test_a_known_picture_is_not_encoded_again():
    encode, cache = Encoder(), FeatureCache()
    first = encoded([plain("red"), plain("blue")], encode, cache)
    second = encoded([plain("blue"), plain("green"), plain("red")], encode, cache)
    assert encode.calls == [2, 1]
    assert (cache.hits, cache.misses, len(cache)) == (2, 3, 3)
    assert second[2][0] is first[0][0]


def test_one_level_of_one_pixel_makes_another_picture():
    pixels = np.zeros((4, 4, 3), dtype=np.float32)
    other = pixels.copy()
    other[3, 3, 2] = 2 / 255
    assert picture_key(pixels) == picture_key(pixels.copy()) != picture_key(other)


def test_the_longest_unused_pictures_go_when_the_room_is_used_up():
    cache = FeatureCache(max_bytes=20)
    for key in (b"a", b"b"):
        cache.put(MODEL, key, key, 8)
    cache.get(MODEL, b"a")
    cache.put(MODEL, b"c", b"c", 8)
    assert [cache.get(MODEL, key) for key in (b"a", b"b", b"c")] == [b"a", None, b"c"]
    assert cache.bytes == 16
    cache.put(MODEL, b"huge", b"huge", 21)
    assert (cache.get(MODEL, b"huge"), len(cache)) == (None, 2)


@pytest.mark.parametrize("size", [-1, "x", None, 1.5])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(OptionError, match="max_bytes is"):
        FeatureCache(size)


@pytest.mark.parametrize("package", [mlx_paligemma, torch_ref], ids=["mlx", "torch"])
def test_something_else_than_a_cache_is_refused(package):
    with pytest.raises(OptionError, match="give a FeatureCache"):
        package.generate(*package.load(), SCENES[0], "caption en", features=True)


def test_another_model_empties_the_cache():
    cache, encode = FeatureCache(), Encoder()
    encoded([plain("red")], encode, cache)
    encoded([plain("red")], encode, cache, Model())
    assert encode.calls == [1, 1]
    assert (len(cache), cache.bytes) == (1, 12)


@pytest.fixture(scope="module", params=[mlx_paligemma, torch_ref], ids=["mlx", "torch"])
def demo(request):
    return request.param, *request.param.load()


def test_a_second_question_skips_the_vision_tower_and_has_the_same_answer(demo, monkeypatch):
    package, model, processor = demo
    fresh = [package.generate(model, processor, SCENES[0], prompt) for prompt in PROMPTS]
    cache, calls, encode = FeatureCache(), [], type(model).encode_images
    monkeypatch.setattr(type(model), "encode_images", lambda self, pixels: calls.append(len(pixels)) or encode(self, pixels))
    cached = [package.generate(model, processor, SCENES[0], prompt, features=cache) for prompt in PROMPTS]
    assert calls == [1]
    assert [result.token_ids for result in cached] == [result.token_ids for result in fresh]
    assert [d.score for r in cached for d in r.detections] == [d.score for r in fresh for d in r.detections]


def test_questions_on_one_picture_in_a_batch_encode_it_once(demo, monkeypatch):
    package, model, processor = demo
    alone = [package.generate(model, processor, SCENES[1], prompt) for prompt in PROMPTS]
    calls, encode = [], type(model).encode_images
    monkeypatch.setattr(type(model), "encode_images", lambda self, pixels: calls.append(len(pixels)) or encode(self, pixels))
    together = package.batch_generate(model, processor, [SCENES[1]] * 4, PROMPTS)
    assert calls == [1]
    assert [result.token_ids for result in together] == [result.token_ids for result in alone]


def test_unlike_numbers_of_pictures_go_together(demo):
    package, model, processor = demo
    rows = [SCENES[0], [SCENES[1], SCENES[2]], [SCENES[2], SCENES[0], SCENES[1]]]
    alone = [package.generate(model, processor, row, "caption en") for row in rows]
    together = package.batch_generate(model, processor, rows, ["caption en"] * 3)
    assert [result.token_ids for result in together] == [result.token_ids for result in alone]
    assert [result.stats.prompt_tokens for result in together] == [64 * count + 4 for count in (1, 2, 3)]
