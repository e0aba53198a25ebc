"""The benchmark command: real sizes without a download, through the real generation, beside the machine's own rates."""

import json
import time

import checkpoints
import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from program import one_line, program

from mlx_paligemma import generation
from mlx_paligemma.benchmark import measure, rates, setup
from mlx_paligemma.benchmark.measure import force_fused
from mlx_paligemma.benchmark.pairs import drift, in_blocks, paired_ratio
from mlx_paligemma.benchmark.report import Row, report
from mlx_paligemma.benchmark.requests import first_loc, random_inputs
from mlx_paligemma.benchmark.setup import Setup, open_model, plan
from mlx_paligemma.benchmark.trial import Trial, run_trial
from mlx_paligemma.common.errors import NumericError, OptionError, PromptError, TooLargeError
from mlx_paligemma.common.hub import bundled_checkpoint
from mlx_paligemma.common.tokenizer import PaliGemmaTokenizer
from mlx_paligemma.published import published_config
from mlx_paligemma.roofline import decode_bytes, prefill_work

TINY = Setup(random="tiny", resolution=28, generation_tokens=4, prompt_tokens=5, trials=3)


def trial(first, decode):
    return Trial(first, decode, first, decode, int(6e9), [[1]])


@pytest.fixture(scope="module")
def tiny():
    return open_model(plan(TINY))


@pytest.fixture
def quick_rates(monkeypatch):
    """Probes of a size that takes no time: what is tested is what becomes of them."""
    monkeypatch.setattr(rates, "VECTOR", (256, 64))
    monkeypatch.setattr(rates, "SIZES", (32, 64))


def test_a_random_model_has_the_published_shape_and_the_dtype_that_was_asked_for(tiny):
    config = published_config("tiny", 28)
    unfused = setup.random_model(config, mx.bfloat16)
    shapes = {name: array.shape for name, array in tree_flatten(unfused.parameters())}
    assert shapes["language_model.embed_tokens.weight"] == (config.text.vocab_size, config.text.hidden_size)
    assert shapes["vision_tower.embeddings.position_embedding.weight"] == (4, config.vision.hidden_size)
    assert {array.dtype for _, array in tree_flatten(tiny.parameters())} == {mx.bfloat16}


def test_random_weights_matter_and_keep_scores_finite(tiny):
    weights = dict(tree_flatten(setup.random_model(tiny.config, mx.float32).parameters()))
    assert all(array.size == 1 or mx.std(array).item() > 0 for array in weights.values())
    tokens = run_trial(tiny, random_inputs(tiny.config, 5), 8).token_ids
    assert len(tokens) == 8
    assert min(map(min, tokens)) >= 0


def test_rows_beyond_the_drawn_ones_repeat_them_and_the_shape_is_exact(monkeypatch):
    monkeypatch.setattr(setup, "DRAWN_ROWS", 4)
    made = setup.random_matrix((11, 3), mx.float32, mx.random.key(1))
    assert made.shape == (11, 3)
    assert mx.array_equal(made[8:], made[:3])
    assert len({row.tobytes() for row in np.array(made)}) == 4


def test_making_a_model_peaks_near_its_final_size():
    config = published_config("tiny", 224)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    model = setup.random_model(config, mx.bfloat16)
    size = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    assert mx.get_peak_memory() - before < 2 * size  # a matrix is drawn in float32 before it is cast; large ones only in part


def test_the_timed_run_is_the_generation_that_users_have(tiny, monkeypatch):
    calls = []
    real = generation.steps_of
    monkeypatch.setattr(generation, "steps_of", lambda *given: calls.append(given[1]) or real(*given))
    trial = run_trial(tiny, random_inputs(tiny.config, 5), 6)
    assert len(calls) == 1
    assert calls[0].options.is_greedy
    assert len(trial.token_ids) == 6
    assert trial.decode_s > 0
    assert trial.time_to_first_token_s > 0


def test_nothing_ends_a_run_early(tiny, monkeypatch):
    """All tokens are asked for, even where the model would have stopped."""
    monkeypatch.setattr(type(tiny), "logits", lambda self, hidden, *_: mx.eye(2048)[1] * mx.ones((*hidden.shape[:2], 1)))
    model = open_model(plan(TINY))
    assert run_trial(model, random_inputs(model.config, 5), 5).token_ids == [[model.config.eos_token_id]] * 5


def test_scores_that_are_no_numbers_are_said_and_not_timed():
    model = open_model(plan(TINY))
    model.language_model.norm.weight = model.language_model.norm.weight * mx.nan
    with pytest.raises(NumericError, match="not finite"):
        run_trial(model, random_inputs(model.config, 5), 2)


def test_every_row_has_its_own_picture_and_prompt_and_they_are_the_same_each_time():
    config = published_config("tiny", 28)
    inputs, again = random_inputs(config, 6, 3), random_inputs(config, 6, 3)
    assert inputs.input_ids.shape == (3, 4 + 6)
    assert (inputs.input_ids[:, :4] == config.image_token_index).all()
    assert (inputs.input_ids[:, 4:] < first_loc(config)).all()
    assert len({row.tobytes() for row in inputs.pixel_values}) == len({row.tobytes() for row in inputs.input_ids}) == 3
    assert np.array_equal(inputs.pixel_values, again.pixel_values)
    assert np.array_equal(inputs.input_ids, again.input_ids)


def test_the_first_loc_is_that_of_the_vocabulary():
    folder = bundled_checkpoint()
    assert first_loc(plan(Setup()).config) == PaliGemmaTokenizer.from_folder(folder).first_loc


def test_a_model_larger_than_the_memory_is_refused_before_it_is_made(monkeypatch):
    monkeypatch.setattr(setup, "free_bytes", lambda: 8_000_000_000)
    monkeypatch.setattr(measure, "measure_rates", lambda dtype: pytest.fail("it went on"))
    with pytest.raises(TooLargeError, match=r"59\.\d GB.*8\.0 GB"):
        measure.measure(Setup(random="pg2-28b", resolution=896), print)


def test_a_batch_that_cannot_fit_says_how_many_rows_can(monkeypatch):
    monkeypatch.setattr(setup, "free_bytes", lambda: 8_000_000_000)
    assert plan(Setup(random="pg2-3b")).bits == 16
    with pytest.raises(TooLargeError, match=r"at most \d+"):
        plan(Setup(random="pg2-3b", batch=1000))


def test_tokens_beyond_the_context_are_refused():
    with pytest.raises(PromptError, match="8192"):
        plan(Setup(random="tiny", prompt_tokens=8000, generation_tokens=1000))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "x", "random": "tiny"}, "exclude"),
        ({"resolution": 448}, "--random"),
        ({"generation_tokens": 1}, "at least 2"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        Setup(**options)


def test_a_folder_without_a_vocabulary_is_enough(tmp_path):
    folder = checkpoints.write(tmp_path / "model")
    (folder / "tokenizer.model").unlink()
    model = open_model(plan(Setup(model=str(folder))))
    assert len(run_trial(model, random_inputs(model.config, 3), 2).token_ids) == 2


def test_medians_stand_beside_predictions_from_the_rates():
    planned = plan(Setup(random="pg1-3b", resolution=448, generation_tokens=101, prompt_tokens=24, trials=3))
    found = report(planned, rates.Rates(400e9, 10e12, 4096), [trial(t, 10 * t) for t in (1.0, 3.0, 2.0)], 0.25, 1)
    figures = found.as_dict()
    config = published_config("pg1-3b", 448)
    assert figures["time_to_first_token_s"] == 2.0
    assert figures["generation_tps"] == 100 / 20
    assert figures["prompt_tps"] == (1024 + 24) / 2
    assert figures["vision_ms"] == 250
    assert figures["predicted"]["time_to_first_token_s"] == prefill_work(config, 24).total / 10e12
    assert figures["predicted"]["generation_tps"] == 400e9 / decode_bytes(config, 1024 + 24 + 50)
    assert figures["share"]["generation_tps"] == pytest.approx(5 / figures["predicted"]["generation_tps"])
    assert figures["share"]["time_to_first_token_s"] == pytest.approx(figures["predicted"]["time_to_first_token_s"] / 2)


def test_float32_moves_twice_the_bytes():
    half, whole = (
        report(plan(Setup(random="tiny", dtype=dtype)), rates.Rates(1e9, 1e9, 8), [trial(1.0, 1.0)], 1.0, 1).as_dict()
        for dtype in ("bfloat16", "float32")
    )
    assert half["predicted"]["generation_tps"] == pytest.approx(2 * whole["predicted"]["generation_tps"])


def test_a_share_of_one_is_what_the_machine_allows():
    assert Row("generation_tps", 50.0, 100.0, higher_is_better=True).share == 0.5
    assert Row("time_to_first_token_s", 2.0, 1.0).share == 0.5
    assert Row("peak_memory_bytes", 3.0, 2.0).share == 1.5
    assert Row("load_peak_bytes", 3.0, None).share is None


def test_the_rates_are_those_of_the_products(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(rates, "VECTOR", (256, 64))
    monkeypatch.setattr(rates, "SIZES", (32, 64))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))  # each product takes one second
    found = rates.measure_rates(mx.float32)
    assert found.gemv_bytes_s == 256 * 64 * 4
    assert (found.gemm_flops, found.gemm_size) == (2 * 32**3, 32)  # slow: no larger one is tried


def test_a_steady_growth_of_cost_does_not_favour_the_side_that_runs_first():
    clock = iter(range(100))
    ours, theirs = in_blocks([lambda: next(clock), lambda: next(clock)], 6)
    assert sum(ours) == sum(theirs)
    assert ours[:2] == [0, 3]


def test_a_ratio_has_an_interval_and_is_not_steady_when_one_side_drifts():
    ratio = paired_ratio([1.0, 1.0, 1.0, 1.0, 1.0], [2.0, 2.1, 2.0, 1.9, 2.0])
    assert ratio.value == 2.0
    assert 1.9 <= ratio.low < ratio.value < ratio.high <= 2.1
    assert ratio.is_steady
    assert not paired_ratio([1.0, 1.0, 1.2, 1.2], [2.0, 2.0, 2.4, 2.4]).is_steady
    assert drift([1.0, 1.0, 1.2, 1.2]) == pytest.approx(0.2)


def test_forcing_the_kernel_reaches_every_attention(tiny):
    config = published_config("pg1-3b", 224)
    assert config.text.attn_logit_softcapping is None  # there the kernel can be chosen
    force_fused(tiny, True)
    layers = tiny.language_model.layers
    assert all(layer.attention.attend.force_fused for layer in layers)
    force_fused(tiny, False)
    assert not any(layer.attention.attend.force_fused for layer in layers)


def test_the_command_ends_with_one_json_line(quick_rates, monkeypatch, capfd):
    run = program(monkeypatch, capfd)
    code, out, _ = run("benchmark", "--random", "tiny", "--resolution", 28, "-p", 5, "-g", 4, "-n", 2, "-b", 2)
    *table, line = out.strip().splitlines()
    figures = json.loads(line)
    wanted = {"prompt_tps", "generation_tps", "time_to_first_token_s", "peak_memory_bytes", "load_peak_bytes", "vision_ms"}
    assert code == 0
    assert all(figures[name] > 0 for name in wanted)
    assert figures["batch"] == 2
    assert figures["machine"]["chip"]
    assert any("predicted" in text for text in table)


def test_json_leaves_the_table_out(quick_rates, monkeypatch, capfd):
    code, out, _ = program(monkeypatch, capfd)("benchmark", "--random", "tiny", "--resolution", 28, "-g", 2, "-n", 1, "--json")
    assert code == 0
    assert json.loads(out)["model"] == "tiny"


@pytest.mark.skipif(mx.metal.is_available(), reason="Metal is here: the comparison would run")
def test_without_metal_the_kernels_cannot_be_compared_and_one_line_says_so(monkeypatch, capfd):
    code, out, err = program(monkeypatch, capfd)("benchmark", "--random", "pg1-3b", "--ab", "force-fused")
    assert code == 1
    one_line(err, "error: --ab force-fused", "Metal")
    assert not out


@pytest.mark.metal
@pytest.mark.skipif(not mx.metal.is_available(), reason="needs an Apple GPU")
def test_on_metal_the_kernels_are_compared():
    choice = measure.compare_kernels(Setup(random="pg1-3b", trials=5, generation_tokens=2), print)
    assert choice.time_to_first_token.pairs == 5
