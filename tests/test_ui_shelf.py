"""Models are loaded and swapped while others answer, within the memory that there is; a bad new one costs no old one."""

import gc
import json
import threading
import time
import weakref
from dataclasses import replace

import pytest
from checkpoints import config_json, write
from hub_server import HubServer
from PIL import Image
from program import PICTURE
from serving import until

from mlx_paligemma import generate, load
from mlx_paligemma.common.errors import BusyError, CheckpointError, OptionError, TooLargeError
from mlx_paligemma.common.memory import model_bytes
from mlx_paligemma.common.sampling import SamplingOptions
from mlx_paligemma.ui import shelf as shelves
from mlx_paligemma.ui.answering import answer
from mlx_paligemma.ui.model_spec import ModelSpec
from mlx_paligemma.ui.shelf import MAIN, SECOND, Shelf, needed
from mlx_paligemma.ui.stop import Stop

SHAPES = Image.open(PICTURE).convert("RGB")
DEMO = ModelSpec()
BRIEF = SamplingOptions(max_tokens=8)
ENDLESS = SamplingOptions(max_tokens=150, temperature=9.0, seed=1, grammar=False)  # hundreds of random tokens


@pytest.fixture
def shelf():
    made = Shelf()
    yield made
    made.close()


@pytest.fixture
def other(tmp_path):
    """A tiny checkpoint, as a spec."""
    return ModelSpec(str(write(tmp_path / "tiny model")))


@pytest.fixture
def only(monkeypatch):
    """only(bytes): so much memory is free, whoever asks; a function gives another number each time."""
    real = shelves.open_backend

    def set_free(free):
        count = free if callable(free) else lambda: free
        monkeypatch.setattr(shelves, "open_backend", lambda name: replace(real(name), free_bytes=count))

    return set_free


def text(runner, prompt="caption en", options=BRIEF):
    *_, found = answer(runner, SHAPES, prompt, options, Stop())
    return found.text


def test_what_was_loaded_answers(shelf):
    with pytest.raises(OptionError, match="no model is loaded"):
        shelf.get()
    assert shelf.find() is None
    lines = [*shelf.load(DEMO)]
    assert lines[0] == "demo: looking for it"
    assert lines[-3].startswith("demo: needs ") and lines[-3].endswith(" are free")
    assert lines[-2] == "demo: loading 12 MB"
    assert lines[-1] == "demo: ready"
    assert text(shelf.get()) == generate(*load(), PICTURE, "caption en", max_tokens=8).text
    assert shelf.get() is shelf.find(MAIN)


def test_what_is_needed_is_what_a_loaded_model_takes(shelf):
    need = needed(DEMO)
    config = load()[1].config
    assert (need.weights, need.whole) == model_bytes(config, "float32")
    assert needed(replace(DEMO, dtype="bfloat16")).weights * 2 == need.weights
    assert needed(replace(DEMO, backend="torch")).weights == need.weights
    assert need.free > need.whole


def test_after_a_swap_the_new_one_answers_and_the_old_one_is_closed(shelf):
    [*shelf.load(DEMO)]
    old = shelf.get()
    [*shelf.load(replace(DEMO, backend="torch"))]
    assert shelf.get() is not old
    assert shelf.get().spec.backend == "torch"
    assert text(shelf.get()) == text_of_demo()
    with pytest.raises(BusyError, match="let go"):
        text(old)
    gone = weakref.ref(old)
    del old
    gc.collect()
    assert gone() is None


def text_of_demo():
    return generate(*load(), PICTURE, "caption en", max_tokens=8).text


def test_two_places_are_independent(shelf, other):
    [*shelf.load(DEMO), *shelf.load(replace(DEMO, dtype="bfloat16"), SECOND)]
    [*shelf.load(other, SECOND)]
    assert text(shelf.get(MAIN)) == text_of_demo()
    assert shelf.get(SECOND).spec == other


def test_an_answer_that_runs_during_a_swap_comes_to_its_end(shelf, other):
    [*shelf.load(DEMO)]
    old = shelf.get()
    asked = answer(old, SHAPES, "caption en", ENDLESS, Stop())
    next(asked)
    swap = threading.Thread(target=lambda: [*shelf.load(other)])
    swap.start()
    until(lambda: shelf.get() is not old)
    assert text(shelf.get(), options=SamplingOptions(max_tokens=1)) is not None  # the new one answers meanwhile
    assert swap.is_alive()
    *_, result = asked
    swap.join(20)
    assert not swap.is_alive()
    assert result.finish_reason in ("length", "stop")
    assert len(result.token_ids) > 50


def test_of_two_swaps_at_once_the_second_is_refused_at_once(shelf, other):
    [*shelf.load(DEMO)]
    first = shelf.load(other)
    next(first)
    begun = time.monotonic()
    with pytest.raises(BusyError, match="another model is being loaded"):
        next(shelf.load(DEMO, SECOND))
    assert time.monotonic() - begun < 0.2
    assert [*first][-1] == "tiny model: ready"
    assert shelf.get().spec == other
    [*shelf.load(DEMO, SECOND)]


def test_a_swap_that_nobody_follows_any_more_lets_the_next_one_in(shelf, other, monkeypatch):
    goes_on, real = threading.Event(), shelves.find_folder

    def endless(name, revision, tell):
        tell(1, 2)
        goes_on.wait(20)
        return real(name)

    monkeypatch.setattr(shelves, "find_folder", endless)
    monkeypatch.setattr(shelves, "needed", lambda spec: shelves.Need(1, 1, 10**9, missing=2))
    swap = shelf.load(other)
    told = ["looking for it", "needs about 0 MB of memory, 1.0 GB are free, 0 MB to download", "downloading, 0 MB of 0 MB (50%)"]
    assert [next(swap) for _ in told] == [f"tiny model: {words}" for words in told]
    begun = time.monotonic()
    swap.close()  # as when the visitor has closed the page; a download may take hours
    assert time.monotonic() - begun < 1
    monkeypatch.undo()
    [*shelf.load(DEMO)]
    assert shelf.get().spec == DEMO
    goes_on.set()


def test_a_model_that_does_not_fit_is_refused_in_words_and_the_old_one_stays(shelf, only):
    [*shelf.load(DEMO)]
    old = shelf.get()
    only(2_000_000)
    with pytest.raises(TooLargeError) as caught:
        [*shelf.load(replace(DEMO, backend="torch"))]
    whole = model_bytes(load()[1].config, "float32")[1]
    assert "\n" not in str(caught.value)
    assert f"demo needs {whole / 1e6:.0f} MB of memory, 2 MB are free; choose a smaller model" in str(caught.value)
    assert shelf.get() is old
    assert text(old) == text_of_demo()


def test_to_the_byte_it_fits_where_the_old_one_goes(shelf, only):
    [*shelf.load(DEMO)]
    whole = model_bytes(load()[1].config, "float32")[1]
    only(whole - shelf.get().bytes - 1)
    with pytest.raises(TooLargeError):
        [*shelf.load(DEMO)]
    only(whole - shelf.get().bytes)
    assert any("demo goes first" in line for line in shelf.load(DEMO))


def test_where_only_one_fits_the_old_one_goes_before_the_new_one_is_loaded(shelf, only, other, monkeypatch):
    [*shelf.load(DEMO)]
    old, order, real = shelf.get(), [], shelves.load_runner
    close = old.close
    monkeypatch.setattr(old, "close", lambda *_: order.append("close") or close())
    monkeypatch.setattr(shelves, "load_runner", lambda *given: order.append("load") or real(*given))
    only(old.bytes)
    lines = [*shelf.load(replace(DEMO, backend="torch"))]
    assert order == ["close", "load"]
    assert "demo: loading 12 MB, demo goes first" in lines
    assert shelf.get().spec.backend == "torch"
    only(10**12)
    order.clear()
    old = shelf.get()
    monkeypatch.setattr(old, "close", lambda *_: order.append("close"))
    [*shelf.load(DEMO)]
    assert order == ["load", "close"]


def test_while_the_old_one_is_gone_and_the_new_one_is_not_there_visitors_are_told_so(shelf, only, monkeypatch):
    [*shelf.load(DEMO)]
    only(shelf.get().bytes)
    real = shelves.load_runner

    def load_meanwhile(*given):
        with pytest.raises(BusyError, match="is being loaded; ask again"):
            shelf.get()
        return real(*given)

    monkeypatch.setattr(shelves, "load_runner", load_meanwhile)
    [*shelf.load(DEMO)]
    assert shelf.get()


@pytest.mark.parametrize("fits", [True, False])
def test_a_load_that_fails_leaves_the_old_one_answering(shelf, tmp_path, only, fits, monkeypatch):
    [*shelf.load(DEMO)]
    if not fits:
        only(0)  # beside the old one
    folder = write(tmp_path / "damaged", data=config_json())
    (folder / "tokenizer.model").write_bytes(b"no vocabulary")  # it is read after the memory was reckoned
    with pytest.raises(CheckpointError, match=r"tokenizer\.model"):
        [*shelf.load(ModelSpec(str(folder)))]
    assert shelf.get().spec == DEMO
    assert text(shelf.get()) == text_of_demo()


def test_what_is_no_checkpoint_is_refused_before_anything_is_let_go(shelf, tmp_path, other):
    [*shelf.load(DEMO)]
    old = shelf.get()
    (tmp_path / "tiny model" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    for spec, words in ((other, "llama"), (ModelSpec("no/such folder"), "no such folder"), (replace(DEMO, dtype="int3"), "int3")):
        with pytest.raises((CheckpointError, OptionError), match=words):
            [*shelf.load(spec)]
    assert shelf.get() is old


def test_a_model_of_the_hub_tells_how_far_its_download_is(shelf, tmp_path, monkeypatch):
    folder = write(tmp_path / "large", data=config_json(text={"vocab_size": 257216}))
    size = sum(file.stat().st_size for file in folder.iterdir() if file.name != "config.json")
    monkeypatch.setattr(shelves, "INTERVAL", 0.01)
    with HubServer() as hub:
        hub.take_over(monkeypatch, tmp_path / "cache")
        hub.add("org/name", folder)
        hub.delay = 0.02
        lines = [*shelf.load(ModelSpec("org/name"))]
        told = [line for line in lines if "downloading" in line]
        assert told[-1] == f"org/name: downloading, {size / 1e6:.0f} MB of {size / 1e6:.0f} MB (100%)"
        assert len({*told}) > 1
        assert lines[-1] == "org/name: ready"
        assert not any("downloading" in line for line in shelf.load(ModelSpec("org/name")))  # it is there


def test_a_model_of_the_hub_that_does_not_fit_is_refused_before_it_is_downloaded(shelf, tmp_path, monkeypatch):
    folder = write(tmp_path / "large", data=config_json(text={"vocab_size": 257216}))
    with HubServer() as hub:
        hub.take_over(monkeypatch, tmp_path / "cache")
        hub.add("org/name", folder)
        monkeypatch.setattr("mlx_paligemma.memory.free_bytes", lambda: 1_000_000)
        with pytest.raises(TooLargeError, match=r"needs about .* of memory, 1 MB are free, 17 MB to download"):
            [*shelf.load(ModelSpec("org/name"))]
        assert not [*(tmp_path / "cache").rglob("*.safetensors")]


def test_a_second_model_can_be_let_go(shelf):
    [*shelf.load(DEMO, SECOND)]
    network = weakref.ref(shelf.get(SECOND))
    shelf.unload(SECOND)
    gc.collect()
    assert shelf.find(SECOND) is None
    assert network() is None
    shelf.unload(SECOND)  # nothing is there


def test_at_the_end_of_the_program_nobody_is_waited_for_for_long(monkeypatch):
    monkeypatch.setattr(shelves, "PATIENCE", 0.1)
    for backend in ("mlx", "torch"):
        shelf = Shelf()
        [*shelf.load(ModelSpec(backend=backend))]
        stop = Stop()
        asked = answer(shelf.get(), SHAPES, "caption en", ENDLESS, stop)
        next(asked)  # and no more: nobody reads on
        begun = time.monotonic()
        shelf.close()
        assert time.monotonic() - begun < 3
        assert stop.is_requested
        assert shelf.find() is None
        asked.close()
