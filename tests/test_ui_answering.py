"""Text grows while an answer is made, and many files get a record each, whatever becomes of some."""

import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
from pictures import encoded, file_with
from PIL import Image
from program import PICTURE
from serving import until

from mlx_paligemma import generate, load
from mlx_paligemma.common.formats import as_record
from mlx_paligemma.common.results import GenerationResult
from mlx_paligemma.common.sampling import SamplingOptions
from mlx_paligemma.ui import answering
from mlx_paligemma.ui.answering import answer, answer_files
from mlx_paligemma.ui.model_spec import ModelSpec
from mlx_paligemma.ui.runners import MAX_ROWS, load_runner
from mlx_paligemma.ui.stop import Stop

SHAPES = Image.open(PICTURE).convert("RGB")
OPTIONS = SamplingOptions(max_tokens=40)
ENDLESS = SamplingOptions(max_tokens=300, temperature=9.0, seed=1, grammar=False)  # hundreds of random tokens
PIXELS = 10**6


@pytest.fixture(scope="module")
def runner():
    loaded = load_runner(ModelSpec(), 0)
    yield loaded
    loaded.close(0)


@pytest.fixture
def files(tmp_path):
    """By their names: ten pictures, of which one is damaged, one is no picture, and one too large."""
    for number in range(10):
        file_with(encoded(SHAPES.resize((100 + 4 * number, 100))), tmp_path, f"{number}.png")
    (tmp_path / "3.png").write_bytes(encoded(SHAPES)[:-100])
    (tmp_path / "5.png").write_text("hello")
    file_with(encoded(Image.new("RGB", (1001, 1000))), tmp_path, "8.png")
    return {f"the {path.name}": path for path in sorted(tmp_path.iterdir())}


def test_the_text_grows_and_then_comes_the_whole(runner, monkeypatch):
    monkeypatch.setattr(answering, "INTERVAL", 0)
    *texts, result = answer(runner, SHAPES, "segment star", OPTIONS, Stop())
    assert len({*texts}) > 10
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert isinstance(result, GenerationResult)
    assert texts[-1] == result.text == generate(*load(), PICTURE, "segment star", max_tokens=40).text


def test_the_text_is_told_no_more_often_than_a_page_can_draw(runner, monkeypatch):
    monkeypatch.setattr(answering, "INTERVAL", 100)
    assert len([*answer(runner, SHAPES, "caption en", OPTIONS, Stop())]) == 2  # the first token's, and the result


def test_files_get_records_in_their_order_and_broken_ones_an_error(runner, files):
    records = [*answer_files(runner, files, "detect star", OPTIONS, PIXELS, Stop())]
    assert [record["image"] for record in records] == [*files]
    errors = {record["image"]: record["error"] for record in records if "error" in record}
    assert [*errors] == ["the 3.png", "the 5.png", "the 8.png"]
    assert all(message.startswith(f"{name} ") and "/" not in message for name, message in errors.items())
    assert "1001 x 1000 pixels, more than 1000000" in errors["the 8.png"]
    model, processor = load()
    for name in ("the 0.png", "the 9.png"):
        wanted = as_record(name, "detect star", generate(model, processor, files[name], "detect star", max_tokens=40))
        found = next(record for record in records if record["image"] == name)
        assert {key: found[key] for key in ("text", "token_ids", "width", "height", "prompt", "finish_reason")} == {
            key: wanted[key] for key in ("text", "token_ids", "width", "height", "prompt", "finish_reason")
        }


def test_no_files_give_no_records(runner):
    assert [*answer_files(runner, {}, "detect star", OPTIONS, PIXELS, Stop())] == []


def test_files_are_decoded_together(runner, files):
    stop, records = Stop(), []
    many = {str(number): files["the 0.png"] for number in range(20)}
    asked = threading.Thread(target=lambda: records.extend(answer_files(runner, many, "caption en", ENDLESS, PIXELS, stop)))
    asked.start()
    until(lambda: runner._loaded[0].decoding == MAX_ROWS)
    stop.request()
    asked.join(20)
    assert not asked.is_alive()
    assert records == []  # none was whole


def test_a_stop_keeps_the_whole_answers_and_ends_the_others(runner, files):
    stop, records = Stop(), []
    many = {f"{number}": files["the 0.png"] for number in range(60)}
    begun = time.monotonic()
    for record in answer_files(runner, many, "caption en", OPTIONS, PIXELS, stop):
        records.append(record)
        if len(records) == 3:
            stop.request()
    assert 3 <= len(records) <= 20
    assert all(record["finish_reason"] == "stop" for record in records)
    assert [record["image"] for record in records] == sorted((record["image"] for record in records), key=int)
    assert time.monotonic() - begun < 10
    assert len(runner._visits) == 0


def test_files_that_nobody_waits_for_any_more_are_let_go(runner, files):
    many = {f"{number}": files["the 0.png"] for number in range(60)}
    stop = Stop()
    records = answer_files(runner, many, "caption en", OPTIONS, PIXELS, stop)
    next(records)
    records.close()
    assert stop.is_requested
    assert len(runner._visits) == 0
    until(lambda: runner._loaded[0].decoding == 0)


def test_all_files_are_asked_of_the_same_model_also_where_it_is_swapped_meanwhile(files, monkeypatch):
    monkeypatch.setattr(answering, "MAX_ROWS", 1)  # between two files none is asked about
    runner = load_runner(ModelSpec(), 0)
    many = {f"{number}": files["the 0.png"] for number in range(6)}
    records = answer_files(runner, many, "caption en", SamplingOptions(max_tokens=3), PIXELS, Stop())
    first = next(records)
    closing = threading.Thread(target=runner.close)
    closing.start()
    rest = [*records]
    closing.join(20)
    assert not closing.is_alive()
    assert [record.get("error") for record in [first, *rest]] == [None] * 6


def test_a_file_that_has_gone_is_an_error_of_its_own(runner):
    [record] = answer_files(runner, {"a.png": Path("/no such folder/a.png")}, "caption en", OPTIONS, PIXELS, Stop())
    assert record["error"] == "a.png cannot be read (No such file or directory); upload it again"
