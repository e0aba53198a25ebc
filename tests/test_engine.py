"""The thread that answers many at once: the same answers as one by one, and nobody waits for the end of another's."""

import gc
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest

from mlx_paligemma import generate, load
from mlx_paligemma.common.decoding import Generation
from mlx_paligemma.common.errors import BusyError, CheckpointError, TooLargeError
from mlx_paligemma.common.feature_cache import FeatureCache
from mlx_paligemma.common.sampling import SamplingOptions
from mlx_paligemma.demo.questions import ask
from mlx_paligemma.demo.scenes import draw_scene
from mlx_paligemma.serve.engine import Engine

LONG = {"max_tokens": 200, "temperature": 9.0, "seed": 1, "grammar": False}  # hundreds of random tokens

ENDING = """
from mlx_paligemma import load
from mlx_paligemma.common.decoding import Generation
from mlx_paligemma.common.sampling import SamplingOptions
from mlx_paligemma.serve.engine import Engine
from PIL import Image
model, processor = load()
engine = Engine(lambda: load()[0])
Generation(engine.steps, int, processor, [Image.new("RGB", (64, 64))], ["caption en"], SamplingOptions()).run()
engine.close()
"""


@pytest.fixture(scope="module")
def demo():
    return load()


@pytest.fixture
def engine():
    made = Engine(lambda: load()[0], max_rows=4, max_waiting=3)
    yield made
    made.close()


@pytest.fixture(scope="module")
def questions():
    rng = np.random.default_rng(3)
    scenes = [draw_scene(rng) for _ in range(12)]
    return [(scene.image, ask(scene, rng, lambda shape: [0] * 16).prefix) for scene in scenes]


def asked(engine, processor, image, prompt, **options) -> Generation:
    return Generation(engine.steps, lambda: 0, processor, [image], [prompt], SamplingOptions(**options))


def test_many_at_once_get_the_answers_of_one_by_one(demo, questions):
    model, processor = demo
    wanted = [generate(model, processor, *question, max_tokens=40).token_ids for question in questions]
    found: list[list[int] | None] = [None] * len(questions)
    engine = Engine(lambda: load()[0], max_rows=4, max_waiting=100)

    def run(index: int) -> None:
        time.sleep(0.03 * index)
        found[index] = asked(engine, processor, *questions[index], max_tokens=40).run()[0].token_ids

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.close()
    assert found == wanted
    assert engine.decoding == engine.waiting == 0


def test_sampled_answers_are_those_of_their_seed(demo, engine, questions):
    model, processor = demo
    options = {"temperature": 1.0, "seed": 11, "max_tokens": 20}
    wanted = generate(model, processor, *questions[0], **options).token_ids
    other = asked(engine, processor, *questions[1], max_tokens=20)
    next(iter(other))
    assert asked(engine, processor, *questions[0], **options).run()[0].token_ids == wanted
    other.run()


def test_the_likeliest_tokens_are_those_of_single_runs(demo, engine, questions):
    """The same to 1e-4, as log-probabilities are in a batch; so near, two tokens may change places."""
    model, processor = demo
    options = {"token_logprobs": True, "top_logprobs": 3, "max_tokens": 20}
    other = asked(engine, processor, *questions[1], max_tokens=20)  # in the same steps, without them
    next(iter(other))
    found, wanted = (
        asked(engine, processor, *questions[0], **options).run()[0],
        generate(model, processor, *questions[0], **options),
    )
    assert found.token_ids == wanted.token_ids
    assert np.array(found.top_logprobs)[..., 1] == pytest.approx(np.array(wanted.top_logprobs)[..., 1], abs=1e-4)
    assert found.top_logprobs[0][0] == (wanted.token_ids[0], pytest.approx(wanted.token_logprobs[0], abs=1e-4))
    assert other.run()[0].top_logprobs is None


def test_rows_that_choose_in_different_ways_are_decoded_in_one_step(demo, engine, questions):
    """Greedy rows choose together, one with a grammar, one that draws, and one that tells more choose alone."""
    model, processor = demo
    ways = [{"grammar": False}, {"grammar": False}, {"grammar": True}, {"temperature": 1.0, "seed": 7, "grammar": False}]
    wanted = [generate(model, processor, *questions[way], max_tokens=30, **options).token_ids for way, options in enumerate(ways)]
    rows = [asked(engine, processor, *questions[way], max_tokens=30, **options) for way, options in enumerate(ways)]
    found = [row.run()[0].token_ids for row in rows]  # all were begun before the first is read
    assert found == wanted


def test_a_program_may_end_right_after_the_engine():
    """MLX's workers of a thread that has ended would abort it."""
    done = [subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, check=False) for _ in range(2)]
    assert [(run.returncode, run.stderr) for run in done] == [(0, "")] * 2


def test_a_closed_engine_keeps_nothing_of_its_model(demo):
    networks = []

    def load_it():
        network = load()[0]
        networks.append(weakref.ref(network))
        return network

    engine = Engine(load_it)
    engine.close()
    gc.collect()
    assert networks[0]() is None


def test_a_late_request_has_its_first_token_before_an_earlier_one_ends(demo, engine, questions):
    early = asked(engine, demo[1], *questions[0], **LONG)
    steps = iter(early)
    next(steps)
    late = asked(engine, demo[1], *questions[1], **LONG)
    next(iter(late))
    assert engine.decoding == 2  # the earlier one too
    assert len(early.run()[0].token_ids) > 50
    assert len(late.run()[0].token_ids) > 50


def test_a_cancelled_request_frees_its_place(demo, engine, questions):
    running = [engine.steps(request_of(demo[1], *question)) for question in questions[:4]]
    for steps in running:
        next(steps)
    assert engine.decoding == 4
    running[0].close()
    assert asked(engine, demo[1], *questions[5], max_tokens=3).run()[0].finish_reason in ("stop", "length")
    for steps in running[1:]:
        steps.close()
    until(lambda: engine.decoding == 0)


def test_too_many_requests_are_refused_at_once(demo, engine, questions):
    running = [engine.steps(request_of(demo[1], *questions[0])) for _ in range(7)]
    with pytest.raises(BusyError, match="7 requests are open"):
        engine.steps(request_of(demo[1], *questions[0]))
    for steps in running:
        next(steps)  # in the order in which they came, none starves
        steps.close()
    until(lambda: engine.waiting == engine.decoding == 0)


def test_closing_finishes_what_runs_and_takes_nothing_new(demo, questions):
    engine = Engine(lambda: load()[0])
    running = asked(engine, demo[1], *questions[0], **LONG)
    next(iter(running))
    closing = threading.Thread(target=engine.close)
    closing.start()
    until(lambda: engine._is_closing)
    with pytest.raises(BusyError, match="closing"):
        engine.steps(request_of(demo[1], *questions[1]))
    assert len(running.run()[0].token_ids) > 50
    closing.join()


def test_what_loading_raises_is_raised_where_the_engine_is_made():
    def broken():
        raise CheckpointError("no such folder")

    with pytest.raises(CheckpointError, match="no such folder"):
        Engine(broken)


def test_an_error_of_one_request_belongs_to_it_alone(demo, engine, questions, monkeypatch):
    def refuse(model, inputs, tokens):
        if tokens == 13:
            raise TooLargeError("a prompt needs too much")

    monkeypatch.setattr("mlx_paligemma.serve.engine.check_batch", refuse)
    running = asked(engine, demo[1], *questions[0], max_tokens=20)
    next(iter(running))
    with pytest.raises(TooLargeError):
        asked(engine, demo[1], *questions[1], max_tokens=13).run()
    assert running.run()[0].token_ids


def test_work_for_mlx_is_done_between_two_steps(engine):
    assert engine.call(lambda a, b: a + b, 2, 3) == 5
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda: 1 / 0)


def test_a_picture_is_encoded_once_for_all_questions_about_it(demo, engine, questions):
    for prompt in ("caption en", "answer en how many shapes are there?"):
        asked(engine, demo[1], questions[0][0], prompt, max_tokens=5).run()
    assert (engine._features.misses, engine._features.hits) == (1, 1)


def test_encoded_pictures_are_kept_where_it_is_told(demo, questions):
    features = FeatureCache()
    engine = Engine(lambda: load()[0], features=features)
    for prompt in ("caption en", "detect star"):
        asked(engine, demo[1], questions[0][0], prompt, max_tokens=2).run()
    engine.close()
    assert (features.misses, features.hits, len(features)) == (1, 1, 1)


def test_work_that_comes_after_the_end_is_refused(demo):
    engine = Engine(lambda: load()[0])
    engine.close()
    with pytest.raises(BusyError, match="closing"):
        engine.call(lambda: 1)
    engine.close()  # a second time does no harm


def test_a_request_that_is_cancelled_while_it_waits_frees_its_place_at_once(demo, engine, questions):
    running = [engine.steps(request_of(demo[1], *questions[0])) for _ in range(4)]
    for steps in running:
        next(steps)
    waits = engine.steps(request_of(demo[1], *questions[1]))
    assert engine.waiting == 1
    ended = threading.Thread(target=lambda: list(waits))
    ended.start()
    waits.close()
    ended.join(timeout=20)
    assert not ended.is_alive()
    until(lambda: engine.waiting == 0)
    assert engine.decoding == 4
    for steps in running:
        steps.close()


def request_of(processor, image, prompt):
    """What a generation of hundreds of random tokens hands over."""
    handed, options = [], SamplingOptions(**LONG)
    Generation(lambda request: handed.append(request) or iter(()), lambda: 0, processor, [image], [prompt], options)
    return handed[0]


def until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
