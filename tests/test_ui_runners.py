"""Loaded models that answer: as `generate` does, many at a time, to be stopped at any time, and let go when nobody asks."""

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
import torch
from PIL import Image
from program import PICTURE
from serving import slowed, until

import mlx_paligemma
import torch_ref
from mlx_paligemma.common.errors import BusyError, CheckpointError, PromptError
from mlx_paligemma.common.sampling import SamplingOptions
from mlx_paligemma.demo.questions import ask
from mlx_paligemma.demo.scenes import draw_scene
from mlx_paligemma.ui import runners
from mlx_paligemma.ui.answering import answer
from mlx_paligemma.ui.model_spec import ModelSpec
from mlx_paligemma.ui.runners import MAX_ROWS, load_runner
from mlx_paligemma.ui.stop import Stop

BACKENDS = {"mlx": mlx_paligemma, "torch": torch_ref}
ENDLESS = SamplingOptions(max_tokens=400, temperature=9.0, seed=1, grammar=False)  # hundreds of random tokens
BRIEF = SamplingOptions(max_tokens=24)


def scenes(count):
    rng = np.random.default_rng(8)
    drawn = [draw_scene(rng) for _ in range(count)]
    return [(scene.image, ask(scene, rng, lambda shape: [0] * 16).prefix) for scene in drawn]


SHAPES = Image.open(PICTURE).convert("RGB")
MASKED = "segment star"
QUESTIONS = [*scenes(7), (SHAPES, MASKED)]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """For PyTorch: more of them wait for one another where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=BACKENDS)
def runner(request):
    loaded = load_runner(ModelSpec(backend=request.param), 0)
    yield loaded
    loaded.close(0)


def result(runner, question, options=BRIEF, stop=None):
    *_, found = answer(runner, *question, options, stop or Stop())
    return found


@contextmanager
def running(runner, question=QUESTIONS[0]):
    """An answer of hundreds of tokens, of which some are there."""
    stop, ended = Stop(), []
    thread = threading.Thread(target=lambda: ended.append(result(runner, question, ENDLESS, stop)))
    with runner.answering(*question, BRIEF, Stop()):  # neither backend has to warm up afterwards
        pass
    thread.start()
    until(lambda: is_decoding(runner))
    yield stop, ended
    stop.request()
    thread.join(20)
    assert not thread.is_alive()


def is_decoding(runner):
    if runner.spec.backend == "torch":
        return runner._turn.locked()
    return runner._loaded[0].decoding == 1


def same(found, wanted):
    assert (found.text, found.token_ids, found.finish_reason) == (wanted.text, wanted.token_ids, wanted.finish_reason)
    for one, other in zip(found.detections, wanted.detections, strict=True):
        assert (one.label, one.box) == (other.label, other.box)
        assert one.score == pytest.approx(other.score, abs=1e-3)  # probabilities of a batch, in float32
        assert (one.mask is None) == (other.mask is None)
        assert one.mask is None or np.array_equal(one.mask, other.mask)


def test_eight_at_once_get_the_answers_of_generate(runner):
    package = BACKENDS[runner.spec.backend]
    model, processor = package.load()
    options = SamplingOptions(max_tokens=24)
    wanted = [package.generate(model, processor, *question, max_tokens=24) for question in QUESTIONS]
    with ThreadPoolExecutor(len(QUESTIONS)) as threads:
        found = [*threads.map(lambda question: result(runner, question, options), QUESTIONS)]
    for one, other in zip(found, wanted, strict=True):
        same(one, other)
    assert found[-1].detections[0].mask is not None


def test_a_sampled_answer_is_that_of_its_seed(runner):
    package = BACKENDS[runner.spec.backend]
    wanted = package.generate(*package.load(), *QUESTIONS[0], max_tokens=12, temperature=1.0, seed=7)
    same(result(runner, QUESTIONS[0], SamplingOptions(max_tokens=12, temperature=1.0, seed=7)), wanted)


def test_a_picture_is_encoded_once_for_all_questions_about_it(runner):
    picture = QUESTIONS[0][0]
    for prompt in ("caption en", "answer en how many shapes are there?", "detect star"):
        result(runner, (picture.copy(), prompt), SamplingOptions(max_tokens=2))
    assert (runner.features.misses, runner.features.hits) == (1, 2)


def test_it_says_what_it_computes_in():
    for backend in BACKENDS:
        loaded = load_runner(ModelSpec(backend=backend, dtype="bfloat16"), 7)
        assert (loaded.dtype, loaded.bytes) == ("bfloat16", 7)
        loaded.close()


def test_a_stop_ends_a_long_answer_keeps_its_text_and_frees_its_place(runner):
    with running(runner) as (stop, ended):
        time.sleep(0.1)
        stop.request()
        until(lambda: ended)
        [found] = ended
        assert found.finish_reason == "cancelled"
        assert 0 < len(found.token_ids) < ENDLESS.max_tokens
        assert found.text
        until(lambda: not is_decoding(runner))
        assert len(runner._visits) == 0
        assert result(runner, QUESTIONS[1]).finish_reason == "stop"


def test_a_stop_ends_what_waits_while_others_have_the_places(runner, monkeypatch):
    """MLX has eight of them, PyTorch one."""
    taken = MAX_ROWS if runner.spec.backend == "mlx" else 1
    first, waiting = [Stop() for _ in range(taken)], Stop()
    with ThreadPoolExecutor(taken + 1) as threads:
        others = [threads.submit(result, runner, QUESTIONS[0], ENDLESS, stop) for stop in first]
        if runner.spec.backend == "mlx":
            until(lambda: runner._loaded[0].decoding == taken)
        else:
            until(runner._turn.locked)
        late = threads.submit(result, runner, QUESTIONS[1], BRIEF, waiting)
        until(lambda: len(runner._visits) == taken + 1)
        time.sleep(0.1)
        assert not late.done()
        waiting.request()
        found = late.result(timeout=5)
        assert (found.finish_reason, found.text, found.token_ids) == ("cancelled", "", [])
        assert not any(other.done() for other in others)
        assert runner.spec.backend == "mlx" or runner._turn.locked()
        for stop in first:
            stop.request()
    until(lambda: len(runner._visits) == 0)


def test_what_is_stopped_before_it_begins_has_no_answer(runner):
    stop = Stop()
    stop.request()
    assert result(runner, QUESTIONS[0], ENDLESS, stop).token_ids == []


def test_an_answer_that_nobody_reads_to_its_end_frees_its_place(runner):
    begun = answer(runner, *QUESTIONS[0], ENDLESS, Stop())
    next(begun)
    assert len(runner._visits) == 1
    is_mlx = runner.spec.backend == "mlx"
    with slowed(SimpleNamespace(engine=runner._loaded[0])) if is_mlx else nullcontext():
        begun.close()  # as when the visitor has closed the page
        assert len(runner._visits) == 0
        until(lambda: not is_mlx or runner._loaded[0].decoding == 0, seconds=2)
    assert result(runner, QUESTIONS[1]).finish_reason == "stop"


def test_what_cannot_be_answered_frees_its_place_too(runner):
    with pytest.raises(PromptError):
        result(runner, (Image.new("RGB", (8, 8)), " "))
    assert len(runner._visits) == 0


@pytest.mark.parametrize("prompt", ["caption en", MASKED])
def test_closing_waits_for_what_runs_also_for_its_masks(runner, prompt):
    """The masks are decoded after the last token, by the model's own thread."""
    with runner.answering(SHAPES, prompt, SamplingOptions(max_tokens=30), Stop()) as generation:
        steps = iter(generation)
        next(steps)
        closing = threading.Thread(target=runner.close)
        closing.start()
        for _ in steps:
            pass
        time.sleep(0.2)
        assert closing.is_alive()
        assert generation.results()[0].finish_reason == "stop"
    closing.join(20)
    assert not closing.is_alive()
    with pytest.raises(BusyError, match="let go"), runner.answering(*QUESTIONS[0], BRIEF, Stop()):
        pass


def test_closing_waits_for_all_that_use_it_and_lets_them_ask_on(runner):
    stop = Stop()
    with runner.using(stop):
        closing = threading.Thread(target=runner.close)
        closing.start()
        time.sleep(0.1)
        assert result(runner, QUESTIONS[0]).finish_reason == "stop"
        assert closing.is_alive()
    closing.join(20)
    assert not stop.is_requested
    with pytest.raises(BusyError, match="let go"), runner.using(stop):
        pass


def test_closing_without_patience_stops_what_runs(runner):
    with running(runner) as (stop, ended):
        runner.close(0.1)
        assert stop.is_requested
    assert len(ended) <= 1


def test_masks_are_decoded_in_the_thread_that_owns_the_model(monkeypatch):
    """MLX's streams belong to threads."""
    door, threads = runners.open_backend("mlx"), []

    def load_recording(*arguments, **options):
        network, processor = door.load(*arguments, **options)
        decode = processor.decode_masks
        processor.decode_masks = lambda codes: threads.append(threading.current_thread().name) or decode(codes)
        return network, processor

    monkeypatch.setattr(runners, "open_backend", lambda name: SimpleNamespace(load=load_recording))
    runner = load_runner(ModelSpec(), 0)
    assert result(runner, QUESTIONS[-1], SamplingOptions(max_tokens=30)).detections[0].mask is not None
    runner.close()
    assert {*threads} == {"engine"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_closed_one_holds_the_network_no_more_whoever_holds_it(backend, monkeypatch):
    door, networks = runners.open_backend(backend), []

    class Door:
        def load(self, *arguments, **options):
            network, processor = door.load(*arguments, **options)
            networks.append(weakref.ref(network))
            return network, processor

        def __getattr__(self, name):
            return getattr(door, name)

    monkeypatch.setattr(runners, "open_backend", lambda name: Door())
    gc.collect()
    before = mx.get_active_memory()
    runner = load_runner(ModelSpec(backend=backend), 0)
    result(runner, QUESTIONS[-1], SamplingOptions(max_tokens=30))
    assert networks[0]() is not None
    if backend == "mlx":
        assert mx.get_active_memory() > before + 10**6
    runner.close()
    if backend == "mlx":
        assert mx.get_active_memory() < before + 10**6
        assert mx.get_cache_memory() == 0
    assert networks[0]() is None
    runner.close()  # a second time does no harm


def test_more_than_may_wait_are_refused(monkeypatch):
    monkeypatch.setattr(runners, "MAX_WAITING", 0)
    monkeypatch.setattr(runners, "MAX_ROWS", 1)
    for backend in BACKENDS:
        runner = load_runner(ModelSpec(backend=backend), 0)
        with runner.answering(*QUESTIONS[0], ENDLESS, Stop()) as generation:
            next(iter(generation))
            with pytest.raises(BusyError, match="1 requests are open"), runner.answering(*QUESTIONS[1], BRIEF, Stop()):
                pass
        runner.close()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_cannot_be_loaded_says_why(backend, tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        load_runner(ModelSpec(str(tmp_path / "gone"), backend), 0)
