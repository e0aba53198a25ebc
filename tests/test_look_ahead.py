"""Looking ahead in answers about places: fewer passes, and the same tokens."""

import mlx.core as mx
import numpy as np
import pytest
from parity.tiny_models import config_json, write_pair

from mlx_paligemma import generate, load
from mlx_paligemma.common.tokenizer import PaliGemmaTokenizer
from mlx_paligemma.decode_step import Decoding
from mlx_paligemma.demo.questions import ask
from mlx_paligemma.demo.scenes import draw_scene
from mlx_paligemma.look_ahead import Guesses, Place

PROMPTS = ("detect star ; circle", "detect red square", "segment heart", "segment cross ; star", "detect purple triangle ; heart")
SCORE_LIMIT = 1e-4


@pytest.fixture(scope="module")
def demo():
    return load()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random PaliGemma 2: its answers are wild, and the grammar holds them."""
    pair = write_pair(tmp_path_factory.mktemp("tiny"), config_json(2, sliding_window=40))
    return load(pair.folder)


def scenes(count):
    rng = np.random.default_rng(11)
    return [(draw_scene(rng).image, PROMPTS[number % len(PROMPTS)]) for number in range(count)]


def asked(count):
    """Scenes and "detect" prompts for what is in them."""
    rng = np.random.default_rng(12)
    questions = [(scene, ask(scene, rng, lambda shape: [], "detect")) for scene in (draw_scene(rng) for _ in range(3 * count))]
    return [(scene.image, question.prefix) for scene, question in questions if question.located][:count]


@pytest.mark.parametrize("name", ["demo", "tiny"])
def test_tokens_and_scores_are_those_of_plain_decoding(name, request):
    model = request.getfixturevalue(name)
    for image, prompt in [*scenes(15), *asked(15)]:
        one, other = (generate(*model, image, prompt, max_tokens=60, look_ahead=ahead) for ahead in (True, False))
        assert one.token_ids == other.token_ids and one.finish_reason == other.finish_reason
        for found, wanted in zip(one.detections, other.detections, strict=True):
            assert abs(found.score - wanted.score) < SCORE_LIMIT


@pytest.mark.parametrize("most", [*range(1, 13), 25])
def test_an_answer_that_is_cut_off_is_the_same_too(most, demo):
    image, prompt = asked(1)[0]
    one, other = (generate(*demo, image, prompt, max_tokens=most, look_ahead=ahead) for ahead in (True, False))
    assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason)


def test_an_object_takes_four_or_five_passes_instead_of_seven(demo, monkeypatch):
    passes = []
    call = Decoding.__call__
    monkeypatch.setattr(Decoding, "__call__", lambda self, *given: passes.append(given) or call(self, *given))
    counts = {}
    for ahead in (True, False):
        passes.clear()
        objects = sum(len(generate(*demo, *scene, look_ahead=ahead).detections) for scene in asked(15))
        counts[ahead] = len(passes) / objects
    assert counts[True] < 0.75 * counts[False], counts


def test_inside_a_place_only_its_rows_are_computed(demo, monkeypatch):
    rows, call = [], Decoding.__call__
    monkeypatch.setattr(Decoding, "__call__", lambda self, tokens, part=None: rows.append(part) or call(self, tokens, part))
    image, prompt = asked(1)[0]
    result = generate(*demo, image, prompt.replace("detect", "segment"))
    assert result.detections[0].mask is not None
    widths = [None if part is None else part[1] - part[0] for part in rows]
    assert widths.count(128) >= 14 * len(result.detections) and widths.count(1024) >= 2 * len(result.detections)


@pytest.mark.parametrize("asked_for", [{"token_logprobs": True}, {"top_logprobs": 2}], ids=str)
def test_log_probabilities_are_of_the_whole_vocabulary(demo, monkeypatch, asked_for):
    monkeypatch.setattr(Decoding, "back", lambda *given: pytest.fail("looked ahead"))
    image, prompt = asked(1)[0]
    told = generate(*demo, image, prompt, **asked_for)
    assert len(told.token_logprobs or told.top_logprobs) > 4


@pytest.fixture(scope="module")
def guesses(demo) -> Guesses:
    return Guesses.of(demo[1].tokenizer, "detect red circle ; star")


def test_labels_are_guessed_with_their_separator(guesses, demo):
    tokenizer: PaliGemmaTokenizer = demo[1].tokenizer
    assert [tokenizer.decode(label) for label in guesses.labels] == [" red circle ; ", " star ; "]
    assert Guesses.of(tokenizer, "caption en") is None and Guesses.of(tokenizer, "detect") is None


def test_the_label_last_written_is_the_next_guess(guesses, demo):
    place, tokenizer = Place(guesses), demo[1].tokenizer
    assert place.guess(unread=False) == ()
    for token in tokenizer.encode("<loc0000><loc0001><loc0002>"):
        place.read(token)
    assert place.rows(unread=False) == (guesses.first_loc, guesses.first_loc + 1024)
    assert place.guess(unread=True) == guesses.labels[0]  # the fourth loc token is under way
    for token in tokenizer.encode("<loc0003> star ; <loc0000><loc0001><loc0002><loc0003>"):
        place.read(token)
    assert place.guess(unread=False) == guesses.labels[1]


def test_without_numbers_nothing_is_invented(demo):
    model, processor = load()
    model.language_model.norm.weight = model.language_model.norm.weight * mx.nan
    image, prompt = scenes(1)[0]
    with pytest.raises(Exception, match="not finite"):
        generate(model, processor, image, prompt)
