"""Speed that no machine has to prove: what a decoding step and a prefill cost at full size, against what they must cost.

Nothing of full size is computed; see benchmarks/tracer.py for how it is counted, and for what cannot be seen this way. The limits
of kernels are those of a hand-written step (PERFORMANCE, section 7); the others allow for activations, masks and whole blocks
of the cache.
"""

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_paligemma.decode_step import BLOCK, DecodeStep, Decoding
from mlx_paligemma.fusion import fuse
from mlx_paligemma.model.kv_cache import KVCache
from mlx_paligemma.model.paligemma import PaliGemma
from mlx_paligemma.published import published_config
from mlx_paligemma.roofline import decode_bytes, prefill_work

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # scripts, not a package

from lazy_graph import compiled_operations, trace
from tracer import Counters, count, decode_call, lazy_model, measure, prefill_call

KERNELS = {"pg1-3b": 245, "pg2-3b": 505, "pg2-10b": 810}
BYTES, FLOPS = 1.03, 1.02  # times what the arithmetic demands
ALL = [(size, resolution) for size in KERNELS for resolution in (224, 448, 896)]
measured = cache(measure)

every_size = pytest.mark.parametrize("size", KERNELS)
every_case = pytest.mark.parametrize(("size", "resolution"), ALL)


@every_case
def test_a_token_takes_no_more_kernels_than_a_hand_written_step(size, resolution):
    row = measured(size, resolution)
    assert row.decode.kernels <= KERNELS[size], row.decode.names


@every_case
def test_a_token_moves_hardly_more_bytes_than_weights_and_cache(size, resolution):
    row = measured(size, resolution)
    assert 1 <= row.bytes_ratio <= BYTES, row.decode.names


@every_case
def test_a_prefill_multiplies_no_more_than_it_must(size, resolution):
    """With the last layer's queries and MLP, and the output layer, for one position."""
    assert 1 <= measured(size, resolution).flops_ratio <= FLOPS


@every_case
def test_the_graph_of_a_bfloat16_step_has_no_cast_no_repeat_and_no_float32(size, resolution):
    step = measured(size, resolution).decode
    assert (step.casts, step.repeats, step.float32) == (0, 0, 0)


@every_case
def test_a_prefill_computes_one_row_of_logits(size, resolution):
    assert measured(size, resolution).prefill.output_rows == 1


@every_size
def test_the_pixels_alone_are_float32_in_a_bfloat16_prefill(size):
    assert measured(size, 448).prefill.float32 == 1


@every_size
def test_a_batch_reads_the_weights_once_and_computes_a_row_of_logits_for_each_of_its_rows(size):
    """The cache is read in whole blocks: at 224 pixels 512 columns for 281 tokens, in each row."""
    one, eight = measured(size, 224), measured(size, 224, 8)
    needed = decode_bytes(published_config(size, 224), 2 * BLOCK, batch=8)
    assert eight.decode.kernels == one.decode.kernels
    assert 1 <= eight.decode.bytes / needed <= BYTES
    assert eight.flops_ratio == one.flops_ratio
    assert eight.decode.output_rows == eight.prefill.output_rows == 8


@every_size
def test_padding_costs_kernels_for_masks_alone(size):
    model = lazy_model(published_config(size, 224))
    ragged = count(trace(*decode_call(model, 8, padded=True)), model.config)
    assert ragged.kernels <= measured(size, 224, 8).decode.kernels + 2
    assert (ragged.casts, ragged.repeats, ragged.float32) == (0, 0, 0)


@every_size
@pytest.mark.parametrize("batch", [1, 8])
def test_the_kernels_are_those_that_mlx_compiles(size, batch):
    model = lazy_model(published_config(size, 448))
    found = count(trace(*decode_call(model, batch)), model.config)
    copies = found.names.get("Copy", 0) + found.names.get("Repeat", 0)
    assert found.kernels - copies == compiled_operations(*decode_call(model, batch))


def test_counting_at_full_size_takes_no_memory():
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = lazy_model(published_config("pg2-10b", 896))
    count(trace(*decode_call(model)), model.config)
    count(trace(*prefill_call(model)), model.config)
    assert mx.get_peak_memory() - before < 1e6


@pytest.fixture
def uncompiled():
    """On a CPU `mx.compile` calls a C++ compiler for each kernel; what owns an array does not depend on it."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.mark.usefixtures("uncompiled")
@every_size
def test_steps_leave_no_byte_behind_and_copy_no_array_of_the_cache(size):
    """When MLX frees a temporary array is a matter of threads, so that peaks differ by some; all of them are below one array."""
    decode = started(narrow_model(size), prompt=7, capacity=4 * BLOCK)
    memory_of(decode, steps=1)  # compiling keeps a few scalars, once
    left, extra = memory_of(decode, steps=3)
    assert left == 0
    assert extra < decode._keys[0].nbytes


@pytest.mark.slow
@every_size
def test_compiled_steps_leave_no_byte_behind_either(size):
    test_steps_leave_no_byte_behind_and_copy_no_array_of_the_cache(size)


@pytest.mark.usefixtures("uncompiled")
def test_the_measure_sees_a_cache_that_something_else_holds():
    decode = started(narrow_model("pg2-3b"), prompt=7, capacity=4 * BLOCK)
    held = list(decode._keys)
    whole = sum(array.nbytes for array in held)
    left, extra = memory_of(decode, steps=3)
    assert left == whole
    assert extra > whole


def test_requests_of_one_resolution_and_capacity_share_one_trace():
    """Nothing is computed: the step is traced when its graph is built."""
    for resolution in (28, 56):
        model = narrow_model("pg2-3b", resolution)
        for prompt in (3, 9, 30):
            decode = started(model, prompt, 2 * BLOCK)
            for _ in range(3):
                decode(mx.array([[5]]))
        assert model.step.traces == 1
        started(model, 9, 3 * BLOCK)(mx.array([[5]]))
        assert model.step.traces == 2


def narrow_model(size: str, resolution: int = 28):
    """A size's layers, heads and rules in narrow matrices, with real weights, compiled as on a GPU."""
    config = published_config(size, resolution)
    narrow = {"hidden_size": 64, "intermediate_size": 128}
    text = replace(config.text, **narrow, head_dim=64, vocab_size=512)
    vision = replace(config.vision, **narrow, num_attention_heads=2, num_hidden_layers=1)
    model = PaliGemma(replace(config, text=text, vision=vision, projection_dim=64, image_token_index=511))
    model.set_dtype(mx.bfloat16)
    fused = fuse(model)
    fused.step = DecodeStep(fused, compiled=True)
    return fused


def started(model, prompt: int, capacity: int) -> Decoding:
    """Decoding after a prompt of so many tokens beside the picture's."""
    config = model.config
    ids = mx.array([[config.image_token_index] * config.vision.num_patches + [2] * prompt])
    pixels = mx.zeros((1, 1, config.vision.image_size, config.vision.image_size, 3))
    cache = KVCache(config.text, 1, capacity, mx.bfloat16)
    model.prefill(ids, model.encode_images(pixels), cache)
    return Decoding(model.step, cache)


def memory_of(decode: Decoding, steps: int) -> tuple[int, int]:
    """Bytes that steps leave behind, and bytes that they take for a while."""
    mx.eval(vars(decode))
    mx.synchronize()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for _ in range(steps):
        mx.eval(decode(mx.array([[5]])))
    mx.eval(vars(decode))  # the next position is a sum that nobody has asked for yet
    mx.synchronize()
    return mx.get_active_memory() - before, mx.get_peak_memory() - before


def counted(function, *args) -> Counters:
    return count(trace(function, *args), published_config("tiny"))


X, FACTOR = mx.zeros((2, 4, 8), mx.bfloat16), mx.array([2.0] * 8)


@pytest.mark.parametrize(
    ("function", "casts", "repeats", "float32"),
    [
        (lambda x: x * 2, 0, 0, 0),
        (lambda x: x.astype(mx.float32), 1, 0, 1),
        (lambda x: x * FACTOR, 0, 0, 2),  # the factor and the result: a float32 array spreads
        (lambda x: (x * FACTOR).astype(x.dtype), 0, 0, 1),
        (lambda x: (2.5 * mx.tanh(x.astype(mx.float32))).astype(x.dtype), 0, 0, 0),  # within one kernel
        (lambda x: mx.repeat(x, 2, axis=1), 0, 1, 0),
        (lambda x: mx.fast.rms_norm(x, mx.ones(8, mx.bfloat16), 1e-6), 0, 0, 0),
        (lambda x: mx.fast.rms_norm(x, FACTOR, 1e-6), 1, 0, 3),
    ],
    ids=["as it should be", "a cast", "a float32 factor", "cast back", "in a kernel", "a repeat", "a norm", "a float32 norm"],
)
def test_the_tracer_sees_casts_repeats_and_float32(function, casts, repeats, float32):
    found = counted(function, X)
    assert (found.casts, found.repeats) == (casts, repeats)
    assert found.float32 == float32


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda x: x.reshape(8, 8)[None, 2:].transpose(0, 2, 1), {}),
        (lambda x: x.transpose(0, 2, 1).flatten(1), {"Copy": 1}),
        (lambda x: mx.broadcast_to(x[:, None], (2, 3, 4, 8)).flatten(0, 1), {"Repeat": 1}),
        (lambda x: mx.tanh(x) * x + 1, {"Elementwise": 1}),
        (lambda x: mx.tanh(x) @ x.swapaxes(1, 2), {"Tanh": 1, "Matmul": 1}),
        (lambda x: mx.fast.rope(x, 8, traditional=False, base=1e4, scale=1.0, offset=mx.array(3)), {"RoPE": 1}),
        (lambda x: mx.fast.scaled_dot_product_attention(x[None], x[None], x[None], scale=1.0), {"SDPA": 1}),
    ],
    ids=["views", "a copy", "a repeat", "a group", "two kernels", "a rotation", "an attention"],
)
def test_a_kernel_is_a_group_a_copy_or_an_operation_and_no_view(function, names):
    assert counted(function, X).names == names


def test_bytes_are_what_a_kernel_reads_and_writes():
    table, ids, row = mx.zeros((100, 8), mx.bfloat16), mx.zeros(3, mx.int32), mx.zeros((1, 1, 8), mx.bfloat16)
    place = mx.zeros(1, mx.int32)
    rows = X.size * 2
    assert counted(lambda x: x[:, :2] @ x.swapaxes(1, 2)[:, :, :3], X).bytes == 2 * (2 * 2 * 8 + 2 * 8 * 3 + 2 * 2 * 3)
    assert counted(lambda x: mx.tanh(x) * x + 1, X).bytes == 2 * rows
    assert counted(lambda x: mx.repeat(x, 3, axis=1), X).bytes == 4 * rows
    assert counted(lambda table, ids: table[ids], table, ids).bytes == 2 * 3 * 16 + 3 * 4
    assert counted(lambda x, row, place: mx.slice_update(x[:1], row, place, (1,)), X, row, place).bytes == 2 * 16
    shared = counted(lambda x, row, place: [mx.slice_update(x, row, place, (1,)), mx.tanh(x)], X[:1], row, place)
    assert shared.bytes == 2 * 16 + rows + rows  # a copy of the half, and the tanh of the half


def test_flops_are_those_of_products_convolutions_and_attentions():
    image, kernel = mx.zeros((1, 28, 28, 3)), mx.zeros((5, 14, 14, 3))
    weight, bias = mx.zeros((6, 8), mx.bfloat16), mx.zeros(6, mx.bfloat16)
    heads, keys = mx.zeros((1, 4, 3, 8)), mx.zeros((1, 2, 7, 8))
    assert counted(lambda x, w, b: mx.addmm(b, x, w.T), X, weight, bias).flops == 2 * 8 * 8 * 6
    assert counted(lambda x, w: mx.conv2d(x, w, 14), image, kernel).flops == 2 * 4 * 5 * 14 * 14 * 3
    assert counted(lambda q, k: mx.fast.scaled_dot_product_attention(q, k, k, scale=1.0), heads, keys).flops == 4 * 4 * 3 * 7 * 8


def test_the_limits_are_not_met_by_a_model_as_it_is_published():
    """Norms that add 1 in float32 at each step, a product for each matrix, logits of all positions."""
    config = published_config("pg1-3b", 224)
    plain = PaliGemma(config)
    plain.set_dtype(mx.bfloat16)
    ids, rows = mx.zeros((1, 280), mx.int32), mx.zeros((1, 256, 2048), mx.bfloat16)

    def all_logits(ids, rows):
        return plain.logits(plain.language_model(plain.embed(ids, rows)))

    found = count(trace(all_logits, ids, rows), config)
    assert found.output_rows == 280
    assert found.flops > FLOPS * prefill_work(config, 24).text
    assert found.kernels > KERNELS["pg1-3b"]
    assert found.float32 > 0
    assert found.casts > 0
