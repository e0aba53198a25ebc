"""Options are checked, and both backends draw the next token as they say: the right tokens, as often as they are likely."""

import math
from collections import Counter

import mlx.core as mx
import numpy as np
import pytest
import torch
from checkpoints import config, tensors, tokenizer, write
from PIL import Image

import mlx_paligemma
import torch_ref
from mlx_paligemma import next_token as mlx_next_token
from mlx_paligemma.common.checkpoint import read_checkpoint
from mlx_paligemma.common.decoding import Request
from mlx_paligemma.common.errors import OptionError
from mlx_paligemma.common.processor import PaliGemmaProcessor
from mlx_paligemma.common.sampling import SamplingOptions
from mlx_paligemma.weights import load_model as load_mlx
from torch_ref import next_token as torch_next_token
from torch_ref.weights import load_model as load_torch

PICTURES = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (30, 40, 3), dtype=np.uint8)) for i in range(3)]
PROMPTS = ["caption en", "detect cat ; dog", "answer en is it a star?"]
LOGITS = np.log(np.array([0.02, 0.4, 0.08, 0.3, 0.15, 0.05], dtype=np.float32)) + 3


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "top_k", "max_tokens", "seed", "top_logprobs"])
@pytest.mark.parametrize("value", [True, math.nan, "1", "warm", math.inf, -math.inf, -1, -0.5, [1], 1j], ids=repr)
def test_an_option_that_is_no_fitting_number_is_refused_with_its_name(name, value):
    with pytest.raises(OptionError, match=f"^{name} is ") as error:
        SamplingOptions.from_dict({name: value})
    assert repr(value) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"top_p": 1.5}, {"min_p": 1.01}, {"top_k": 2.0}, {"max_tokens": 0}, {"max_tokens": 2.5},
                                     {"temperature": None}, {"max_tokens": None}, {"temperature": 10**400},
                                     {"top_logprobs": 21}, {"top_logprobs": 2.0}], ids=str)  # fmt: skip
def test_a_value_out_of_range_is_refused(options):
    with pytest.raises(OptionError, match=f"^{next(iter(options))} is "):
        SamplingOptions.from_dict(options)


def test_a_top_p_of_zero_says_what_to_use_instead():
    with pytest.raises(OptionError, match="keeps no token; use temperature 0"):
        SamplingOptions(top_p=0)


def test_an_unknown_option_is_named_with_the_known_ones():
    with pytest.raises(OptionError, match="unknown option 'temp'; known are max_tokens, temperature, top_p, top_k, min_p, seed"):
        SamplingOptions.from_dict({"temp": 1})


def test_the_limits_themselves_are_allowed():
    for options in (
        {"temperature": 0},
        {"temperature": 100},
        {"top_p": 1},
        {"min_p": 0},
        {"min_p": 1},
        {"top_k": 0},
        {"seed": 0},
        {"top_logprobs": 20},
    ):
        assert SamplingOptions.from_dict(options)


def test_a_seed_is_kept_and_without_one_every_call_has_another():
    assert SamplingOptions(seed=7).first_seed() == 7
    assert SamplingOptions(seed=2**40 + 7).first_seed() == 7
    assert len({SamplingOptions().first_seed() for _ in range(20)}) > 15


def filtered_by_mlx(scores, options):
    return np.array(mlx_next_token._filtered(mx.array(scores), options))


def filtered_by_torch(scores, options):
    return torch_next_token._filtered(torch.from_numpy(scores), options).numpy()


def draws_of_mlx(scores, options, count, compiled=False):
    choose = mlx_next_token.TokenChooser(Request(None, options, first_loc=0, plan=None), compiled)
    return [int(choose(mx.array(scores)[None, None])[0][0]) for _ in range(count)]


def draws_of_torch(scores, options, count):
    choose = torch_next_token.TokenChooser(Request(None, options, first_loc=0, plan=None), torch.device("cpu"))
    return [int(choose(torch.from_numpy(scores)[None, None])[0][0]) for _ in range(count)]


@pytest.mark.parametrize("options", [{}, {"temperature": 1}, {"temperature": 0.7, "top_p": 0.8, "top_k": 3, "min_p": 0.1}], ids=str)
def test_compiled_as_on_a_gpu_the_draws_are_the_same(options):
    options = SamplingOptions(seed=3, **options)
    assert draws_of_mlx(LOGITS, options, 8, compiled=True) == draws_of_mlx(LOGITS, options, 8)


@pytest.fixture(params=[filtered_by_mlx, filtered_by_torch], ids=["mlx", "torch"])
def filtered(request):
    return request.param


@pytest.fixture(params=[draws_of_mlx, draws_of_torch], ids=["mlx", "torch"])
def draws(request):
    return request.param


def kept_by_rule(scores, options) -> set[int]:
    """The filters once more, token by token, in float64."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    kept = order[: options.top_k or len(order)]
    total = sum(math.exp(scores[i]) for i in kept)
    before, nucleus = 0.0, []
    for i in kept:
        if before < options.top_p:
            nucleus.append(i)
        before += math.exp(scores[i]) / total
    return {i for i in nucleus if math.exp(scores[i] - scores[order[0]]) >= options.min_p}


FILTERS = {  # probabilities .4 .3 .15 .08 .05 .02 at 1 3 4 2 5 0
    "nothing": ({}, {0, 1, 2, 3, 4, 5}),
    "top_k 1": ({"top_k": 1}, {1}),
    "top_k 3": ({"top_k": 3}, {1, 3, 4}),
    "top_k all": ({"top_k": 6}, {0, 1, 2, 3, 4, 5}),
    "top_k beyond all": ({"top_k": 100}, {0, 1, 2, 3, 4, 5}),
    "top_p tiny": ({"top_p": 1e-9}, {1}),
    "top_p within the first": ({"top_p": 0.39}, {1}),
    "top_p within the second": ({"top_p": 0.41}, {1, 3}),
    "top_p within the third": ({"top_p": 0.84}, {1, 3, 4}),
    "top_p within the last": ({"top_p": 0.99}, {0, 1, 2, 3, 4, 5}),
    "min_p a third": ({"min_p": 0.34}, {1, 3, 4}),
    "min_p one": ({"min_p": 1}, {1}),
    "min_p small": ({"min_p": 0.06}, {1, 2, 3, 4, 5}),
    "top_p of what top_k left": ({"top_k": 2, "top_p": 0.6}, {1, 3}),  # .57 and .43 of what is left
    "top_p after top_k": ({"top_k": 2, "top_p": 0.5}, {1}),
    "all three": ({"top_k": 4, "top_p": 0.95, "min_p": 0.5}, {1, 3}),
}


@pytest.mark.parametrize("case", FILTERS)
def test_a_filter_keeps_exactly_the_tokens_of_its_rule(filtered, case):
    options, expected = SamplingOptions(**FILTERS[case][0]), FILTERS[case][1]
    assert kept_by_rule(LOGITS, options) == expected
    out = filtered(LOGITS[None], options)[0]
    assert set(np.flatnonzero(np.isfinite(out))) == expected
    assert np.array_equal(out[sorted(expected)], LOGITS[sorted(expected)])
    assert (out[[i for i in range(6) if i not in expected]] == -np.inf).all()


def test_filters_keep_the_right_tokens_of_every_row_of_random_scores(filtered):
    rng = np.random.default_rng(0)
    for _ in range(60):
        scores = rng.normal(0, rng.choice([0.1, 1, 5]), (3, 40)).astype(np.float32)
        options = SamplingOptions(
            top_k=int(rng.integers(0, 45)), top_p=float(rng.uniform(0.01, 1)), min_p=float(rng.choice([0, rng.uniform()]))
        )
        out = filtered(scores, options)
        assert [set(np.flatnonzero(np.isfinite(row))) for row in out] == [kept_by_rule(row, options) for row in scores]


def test_tokens_are_drawn_as_often_as_they_are_likely(draws):
    for options, probabilities in (
        ({"temperature": 1.0}, [0.02, 0.4, 0.08, 0.3, 0.15, 0.05]),
        ({"temperature": 0.5}, np.square([0.02, 0.4, 0.08, 0.3, 0.15, 0.05]) / 0.2918),
        ({"temperature": 1.0, "top_k": 2}, [0, 4 / 7, 0, 3 / 7, 0, 0]),
    ):
        count = 3000
        counts = Counter(draws(LOGITS, SamplingOptions(seed=5, **options), count))
        for token, probability in enumerate(probabilities):
            spread = math.sqrt(count * probability * (1 - probability))
            assert abs(counts[token] - count * probability) <= 4 * spread


def test_temperature_zero_takes_the_likeliest_token(draws):
    assert draws(LOGITS, SamplingOptions(temperature=0, seed=1), 5) == [1] * 5


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-20, 1e-7, 1e-6, 1e-3])
def test_a_tiny_temperature_takes_the_likeliest_token(draws, temperature):
    assert draws(LOGITS * 1e3, SamplingOptions(temperature=temperature, seed=1), 20) == [1] * 20


@pytest.mark.parametrize("temperature", [1e4, 1e300])
def test_a_huge_temperature_draws_evenly(draws, temperature):
    counts = Counter(draws(LOGITS, SamplingOptions(temperature=temperature, seed=1), 1200))
    assert all(abs(counts[token] - 200) < 60 for token in range(6))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_a_score_that_is_not_finite_gives_no_token(draws, value, temperature):
    broken = LOGITS.copy()
    broken[2] = value
    assert draws(broken, SamplingOptions(temperature=temperature, seed=1), 2) == [-1, -1]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A tiny model with spread-out scores in both backends, each with its package, and their processor."""
    checkpoint = read_checkpoint(write(tmp_path_factory.mktemp("sampling"), tensors()))
    processor = PaliGemmaProcessor(config(), tokenizer())
    return {"mlx": (mlx_paligemma, load_mlx(checkpoint), processor), "torch": (torch_ref, load_torch(checkpoint), processor)}


@pytest.fixture(params=["mlx", "torch"])
def answer(request, models):
    """Token ids of an answer with the options given."""
    package, model, processor = models[request.param]
    return lambda row=0, **options: package.generate(model, processor, PICTURES[row], PROMPTS[row], **options).token_ids


def test_the_same_seed_gives_the_same_tokens_and_another_others(answer):
    first = answer(temperature=1.0, seed=3, max_tokens=12)
    assert answer(temperature=1.0, seed=3, max_tokens=12) == first
    assert answer(temperature=1.0, seed=4, max_tokens=12) != first
    assert answer(temperature=1.0, max_tokens=12) != answer(temperature=1.0, max_tokens=12)


def test_every_step_draws_anew(answer):
    drawn = answer(temperature=1e9, seed=1, max_tokens=16)  # hot enough for the noise alone to choose
    assert len(set(drawn)) > 12


def test_the_first_tokens_of_a_seed_do_not_depend_on_how_many_are_wanted(answer):
    long = answer(temperature=1.0, seed=3, max_tokens=20)
    assert len(long) > 12
    for count in (1, 5, 12):
        assert answer(temperature=1.0, seed=3, max_tokens=count) == long[:count]


def test_keeping_one_token_is_greedy_whatever_the_temperature(answer):
    greedy = answer(max_tokens=12)
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert answer(max_tokens=12, temperature=2.0, seed=1, **options) == greedy


WAYS = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "seed": 3},
    "filtered": {"temperature": 1.5, "seed": 9, "top_k": 50, "top_p": 0.9, "min_p": 0.01},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["mlx", "torch"])
def test_a_row_of_a_batch_is_what_it_would_be_alone(models, name, way):
    package, model, processor = models[name]
    rows = package.batch_generate(model, processor, PICTURES, PROMPTS, max_tokens=15, **WAYS[way])
    alone = [package.generate(model, processor, *row, max_tokens=15, **WAYS[way]) for row in zip(PICTURES, PROMPTS, strict=True)]
    assert [row.token_ids for row in rows] == [row.token_ids for row in alone]
    assert [row.finish_reason for row in rows] == [row.finish_reason for row in alone]


def test_a_wrong_option_is_refused_before_anything_is_computed(answer):
    with pytest.raises(OptionError, match="unknown option 'top_q'"):
        answer(top_q=1)
