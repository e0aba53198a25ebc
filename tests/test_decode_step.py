"""The compiled decoding step: one graph for all positions, and a cache that can be written over."""

import mlx.core as mx
import numpy as np
import pytest
from parity.batches import random_inputs
from parity.compare import relative_error
from parity.tiny_models import config_json, write_pair

from mlx_paligemma.decode_step import BLOCK, DecodeStep, Decoding, capacity_for
from mlx_paligemma.fusion import fuse
from mlx_paligemma.generation import as_mlx
from mlx_paligemma.model.kv_cache import KVCache

LIMIT = 5e-6


@pytest.fixture(scope="module", params=[1, 2], ids=["paligemma", "paligemma2"])
def model(request, tmp_path_factory):
    pair = write_pair(tmp_path_factory.mktemp("tiny"), config_json(request.param))
    model = fuse(pair.fresh_model())
    model.step = DecodeStep(model, compiled=True)
    return model


def prefilled(model, prefixes=(7,), capacity=BLOCK) -> Decoding:
    arrays = as_mlx(random_inputs(model.config, prefixes))
    cache = KVCache(model.config.text, len(prefixes), capacity, mx.float32, arrays.get("padding"))
    mx.eval(model.prefill(arrays["input_ids"], model.encode_images(arrays["pixel_values"]), cache))
    return Decoding(model.step, cache)


def test_a_step_is_built_once_for_all_positions_and_requests_of_one_capacity(model):
    before = model.step.traces
    for _ in range(3):
        decoding = prefilled(model)
        for token in range(3, 8):
            mx.eval(decoding(mx.array([[token]])))
    assert model.step.traces == before + 1
    mx.eval(prefilled(model, capacity=2 * BLOCK)(mx.array([[3]])))
    assert model.step.traces == before + 2


def test_tokens_that_were_taken_back_leave_no_trace(model):
    plain, other = prefilled(model, (9, 5)), prefilled(model, (9, 5))
    first = mx.array([[3], [4]])
    wanted = [np.array(plain(first)), np.array(plain(first + 2))]
    found = [np.array(other(first))]
    mx.eval(other(mx.array([[9, 8, 7], [6, 5, 4]])))
    other.back(3)
    found.append(np.array(other(first + 2)))
    assert np.array_equal(found[0], wanted[0])
    assert relative_error(found[1], wanted[1]) < LIMIT


def test_several_tokens_at_once_are_as_one_by_one(model):
    tokens = mx.array([[3, 9, 12, 5], [8, 3, 4, 7]])
    together = np.array(prefilled(model, (9, 5))(tokens))
    single = prefilled(model, (9, 5))
    apart = np.concatenate([np.array(single(tokens[:, place : place + 1])) for place in range(4)], axis=1)
    assert relative_error(together, apart) < LIMIT


def test_capacities_are_multiples_that_hold_the_tokens():
    assert [capacity_for(tokens) for tokens in (1, BLOCK, BLOCK + 1)] == [BLOCK, BLOCK, 2 * BLOCK]


def test_the_cache_is_used_up_by_the_step(model):
    arrays = as_mlx(random_inputs(model.config, (7,)))
    cache = KVCache(model.config.text, 1, BLOCK, mx.float32)
    mx.eval(model.prefill(arrays["input_ids"], model.encode_images(arrays["pixel_values"]), cache))
    Decoding(model.step, cache)
    assert not cache.layers
