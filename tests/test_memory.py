"""What a model needs is reckoned before it is loaded, what the machine has is found, and Metal's limits are set and put back."""

import re
from contextlib import nullcontext

import mlx.core as mx
import numpy as np
import pytest
import torch
from checkpoints import config_json, tensors, write
from mlx.utils import tree_flatten
from program import PICTURE, one_line, program

import mlx_paligemma
import torch_ref
import torch_ref.device
from mlx_paligemma import fused_layers, memory, roofline
from mlx_paligemma.backends import open_backend
from mlx_paligemma.common import memory as reckoning
from mlx_paligemma.common.checkpoint import read_checkpoint
from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.common.errors import TooLargeError
from mlx_paligemma.common.memory import (
    Row,
    check_batch,
    check_model,
    fitting_rows,
    gigabytes,
    memory_bytes,
    model_bytes,
    needed_bytes,
    row_bytes,
    weight_bytes,
)
from mlx_paligemma.fusion import fuse
from mlx_paligemma.model.kv_cache import KVCache
from mlx_paligemma.model.paligemma import PaliGemma
from mlx_paligemma.published import Size, published_config
from torch_ref import memory as torch_memory

GB = 10**9
WORKING_SET = 12 * GB


@pytest.fixture
def metal(monkeypatch):
    """A Mac as MLX sees it; what is asked of it is recorded, and the limits behave as MLX's do."""
    limits = {"wired": 0, "cache": 18 * GB}
    calls = []

    def setter(name):
        def set_limit(value):
            calls.append((name, value))
            before, limits[name] = limits[name], value
            return before

        return set_limit

    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {memory.WORKING_SET: WORKING_SET, "memory_size": 16 * GB})
    monkeypatch.setattr(mx, "get_active_memory", lambda: 5 * GB)
    monkeypatch.setattr(mx, "synchronize", lambda: calls.append(("synchronize", None)))
    monkeypatch.setattr(mx, "set_wired_limit", setter("wired"))
    monkeypatch.setattr(mx, "set_cache_limit", setter("cache"))
    return limits, calls


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))


@pytest.fixture
def only(monkeypatch):
    """only(count): the CPU has this many bytes free, whatever MLX holds."""
    monkeypatch.setattr(mx, "get_cache_memory", lambda: 0)
    return lambda count: monkeypatch.setattr(reckoning, "memory_bytes", lambda: (16 * GB, count))


def test_on_metal_the_weights_are_wired_the_cache_gets_the_rest_and_both_are_put_back(metal):
    limits, calls = metal
    with memory.resident_weights():
        assert limits == {"wired": WORKING_SET, "cache": 7 * GB}
    assert limits == {"wired": 0, "cache": 18 * GB}
    assert [name for name, _ in calls] == ["wired", "cache", "synchronize", "cache", "wired"]  # the GPU is done before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_the_limits_are_put_back_after_an_error(metal, error):
    limits, calls = metal
    with pytest.raises(error), memory.resident_weights():
        raise error
    assert limits == {"wired": 0, "cache": 18 * GB}
    assert ("synchronize", None) in calls


def test_answers_that_are_made_in_turns_leave_no_limit_behind(metal):
    limits, _ = metal
    one, other = memory.resident_weights(), memory.resident_weights()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    other.__exit__(None, None, None)
    assert limits == {"wired": 0, "cache": 18 * GB}


def test_a_block_inside_of_another_ends_nothing(metal):
    limits, _ = metal
    with memory.resident_weights():
        with memory.resident_weights():
            pass
        assert limits == {"wired": WORKING_SET, "cache": 7 * GB}


def test_elsewhere_no_limit_is_touched(metal, monkeypatch):
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    with memory.resident_weights():
        pass
    assert metal[1] == []


@pytest.mark.parametrize("error", [False, True])
def test_few_freed_buffers_are_kept_while_weights_are_read_or_rewritten(metal, error):
    limits, _ = metal
    config = published_config("pg2-3b", 448)
    with pytest.raises(ValueError, match="stop") if error else nullcontext(), memory.small_cache(config):
        assert limits["cache"] == weight_bytes(config) // 40
        if error:
            raise ValueError("stop")
    assert limits["cache"] == 18 * GB


def test_a_cache_that_is_smaller_already_stays_so(metal):
    limits, _ = metal
    limits["cache"] = 1000
    with memory.small_cache(published_config("pg2-3b", 448)):
        assert limits["cache"] == 1000
    assert limits["cache"] == 1000


def test_metals_working_set_is_the_budget_and_what_mlx_holds_is_not_free(metal, gpu):
    assert memory.memory_budget() == WORKING_SET
    assert memory.free_bytes() == WORKING_SET - 5 * GB


def test_on_cuda_what_the_driver_calls_free_is_free_and_so_is_mlxs_cache(monkeypatch, gpu):
    monkeypatch.setattr(mx, "device_info", lambda: {"free_memory": 50 * GB, "total_memory": 80 * GB})
    monkeypatch.setattr(mx, "get_active_memory", lambda: 20 * GB)
    monkeypatch.setattr(mx, "get_cache_memory", lambda: 3 * GB)
    assert memory.memory_budget() == 50 * GB
    assert memory.free_bytes() == 53 * GB


def test_on_the_cpu_what_the_system_calls_available_is_free(only):
    only(9 * GB)
    assert memory.free_bytes() == torch_memory.free_bytes(torch.device("cpu")) == 9 * GB


def test_torch_finds_the_memory_of_its_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30 * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5 * GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 4 * GB)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 * GB)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 5 * GB)
    assert torch_memory.free_bytes(torch.device("cuda")) == 31 * GB
    assert torch_memory.free_bytes(torch.device("mps")) == 7 * GB


def test_a_containers_limit_is_the_memory_that_there_is_and_cached_files_count_as_free(monkeypatch, tmp_path):
    monkeypatch.setattr(reckoning, "CGROUP", tmp_path)
    whole, free = memory_bytes()
    assert 0 < free <= whole
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    assert memory_bytes() == (1_000_000, 300_000)
    (tmp_path / "memory.stat").write_text("anon 1\nactive_file 100000\ninactive_file 200000\nfile_mapped 5\n")
    assert memory_bytes() == (1_000_000, 600_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_bytes()[0] == whole


@pytest.mark.parametrize(
    ("count", "words"), [(12_345_678_901, "12.3 GB"), (10**8, "0.1 GB"), (99_400_000, "99 MB"), (0, "0 MB"), (-(10**9), "-1.0 GB")]
)
def test_bytes_are_told_in_gigabytes_and_small_ones_in_megabytes(count, words):
    assert gigabytes(count) == words


def test_a_model_takes_its_weights_and_with_an_answer_more():
    config = published_config("pg2-3b", 224)
    weights = weight_bytes(config, 16)
    assert model_bytes(config, "bfloat16", Row()) == (weights, weights + row_bytes(config, Row(), 16))
    assert model_bytes(config, "float32") == (2 * weights, 2 * weights + row_bytes(config, Row(), 32))
    assert model_bytes(config, "float16", weights=7) == (7, 7 + row_bytes(config, Row(), 16))


@pytest.mark.parametrize("name", ["mlx", "torch"])
def test_both_backends_say_what_a_model_may_still_take(name, only, monkeypatch):
    only(123 * GB)
    monkeypatch.setattr(mx, "get_cache_memory", lambda: GB)  # freed memory that MLX keeps for itself
    assert open_backend(name).free_bytes() == (124 * GB if name == "mlx" else 123 * GB)


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("model_type", ["gemma", "gemma2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_need_what_a_loaded_model_holds(model_type, dtype, head):
    config = PaliGemmaConfig.from_dict(config_json(model_type, tie_word_embeddings=not head))
    model = PaliGemma(config)
    model.set_dtype(getattr(mx, dtype))
    held = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    assert weight_bytes(config, reckoning.BITS[dtype]) == held


@pytest.mark.parametrize("size", [size for size in Size if size != Size.tiny])
@pytest.mark.parametrize("resolution", [224, 448, 896])
@pytest.mark.parametrize("bits", [16, 8.5, 4.5])
def test_it_is_the_peak_of_a_reckoning_matrix_by_matrix(size, resolution, bits):
    config = published_config(size, resolution)
    for rows, queries in ((1, None), (8, None), (8, 1024)):
        ours = needed_bytes(config, bits, Row(text_tokens=24, new_tokens=0, queries=queries), rows)
        assert ours == pytest.approx(reckoned_peak(config, 24, bits, rows, queries), abs=16 * rows)


def reckoned_weights(config: PaliGemmaConfig, bits: float = 16) -> float:
    """Bytes of a loaded model: text model and embedding in `bits`, the picture encoder and the projector always in 16."""
    vision, text, width = config.vision, config.text, config.vision.hidden_size
    layer = 9 * width + vision.intermediate_size  # two norms, four biases of the attention, two of the MLP
    biases = vision.num_hidden_layers * layer + 3 * width  # and the patches' bias and the last norm
    tower = roofline.vision_weights(vision) + biases + vision.num_patches * width
    projector = (width + 1) * config.projection_dim
    heads = 1 if config.tie_word_embeddings else 2
    language = (roofline.body_weights(text) + heads * roofline.embedding_weights(text)) * bits / 8
    return language + (tower + projector + roofline.norm_weights(text)) * 2


def reckoned_peak(
    config: PaliGemmaConfig, text_tokens: int, bits: float = 16, batch: int = 1, query_rows: int | None = None
) -> float:
    """The most memory that a prefill should take: weights, cache, one layer's activations and its attention scores.

    One layer holds at most four arrays of the MLP's width and eight of the hidden size, and its scores three times (raw,
    capped, as weights) unless a fused kernel or chunks of `query_rows` queries bound them.
    """
    text, tokens = config.text, config.vision.num_patches + text_tokens
    activations = tokens * (4 * text.intermediate_size + 8 * text.hidden_size) * 2
    scores = 3 * text.num_attention_heads * min(tokens, query_rows or tokens) * tokens * 2
    return reckoned_weights(config, bits) + batch * (tokens * roofline.kv_bytes_per_token(text) + activations + scores)


def test_float32_takes_twice_what_16_bits_take():
    config = published_config("pg2-3b", 448)
    assert needed_bytes(config, 32) == 2 * needed_bytes(config, 16)


@pytest.mark.parametrize("model_type", ["gemma", "gemma2"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_batch_takes_no_more_than_was_reckoned_and_at_least_half_of_it(model_type, fused):
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 32}
    vision = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 224}
    config = PaliGemmaConfig.from_dict(config_json(model_type, text=sizes, vision=vision, projection_dim=128))
    model = PaliGemma(config)
    mx.eval(model.parameters())
    model = fuse(model) if fused else model
    rows, row = 8, Row(text_tokens=16, new_tokens=16)
    tokens = config.vision.num_patches + row.text_tokens
    ids = mx.array(np.array([[config.image_token_index] * config.vision.num_patches + [2] * row.text_tokens] * rows))
    pictures = mx.zeros((rows, 1, 224, 224, 3))
    mx.eval(ids, pictures)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    cache = KVCache(config.text, rows, tokens + row.new_tokens, mx.float32)
    mx.eval(model.prefill(ids, model.encode_images(pictures), cache))
    taken, reckoned = mx.get_peak_memory() - before, rows * row_bytes(config, row, 32)
    assert reckoned / 2 < taken <= reckoned


def test_the_reckoning_knows_how_many_queries_attend_at_a_time():
    config = published_config("pg2-3b", 896)
    saved = row_bytes(config, Row()) - row_bytes(config, Row(queries=fused_layers.QUERIES))
    tokens = 4096 + Row().text_tokens
    assert saved == 2 * 3 * 8 * tokens * (tokens - fused_layers.QUERIES)


REFUSALS = [  # size, pixels, dtype, gigabytes that are free, what the message says
    ("pg2-3b", 448, "float32", 8.0, ("needs 12.7 GB", "in float32", "448 pixels", "8.0 GB are free", "--dtype bfloat16", "6.4 GB")),
    ("pg2-3b", 896, "bfloat16", 7.0, ("needs 7.8 GB", "7.0 GB are free", "its variant for 448 pixels needs 6.4 GB")),
    ("pg2-3b", 896, "bfloat16", 6.2, ("its variant for 224 pixels needs 6.1 GB",)),
    ("pg2-3b", 896, "float32", 7.0, ("its variant for 448 pixels in dtype bfloat16 (--dtype bfloat16) needs 6.4 GB",)),
    ("pg2-10b", 448, "bfloat16", 12.0, ("needs 20.0 GB", "choose a smaller model", "mlx-paligemma doctor")),
]


@pytest.mark.parametrize(("size", "pixels", "dtype", "free", "words"), REFUSALS)
def test_a_model_that_is_too_large_says_what_it_needs_what_is_there_and_what_fits(size, pixels, dtype, free, words):
    config = published_config(size, pixels)
    with pytest.raises(TooLargeError) as caught:
        check_model(config, dtype, Row(), int(free * GB))
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(("free", "words"), [(32, "8 bits (mlx-paligemma convert -q --q-bits 8) needs 3"), (20, "4 bits")])
def test_quantised_models_are_advised_where_they_can_be_used(free, words):
    config = published_config("pg2-28b", 448)
    with pytest.raises(TooLargeError, match=re.escape(words)):
        check_model(config, "bfloat16", Row(), free * GB, quantises=True)
    with pytest.raises(TooLargeError, match="choose a smaller model"):
        check_model(config, "bfloat16", Row(), free * GB)


def test_a_model_that_fits_to_the_byte_is_accepted():
    config = published_config("pg2-3b", 448)
    need = needed_bytes(config, 16)
    check_model(config, "bfloat16", Row(), need)
    with pytest.raises(TooLargeError):
        check_model(config, "bfloat16", Row(), need - 1)


def test_a_batch_that_is_too_large_says_how_many_rows_fit():
    config = published_config("pg2-3b", 448)
    one = row_bytes(config, Row())
    assert fitting_rows(config, 16, Row(), 5 * one) == 5
    assert fitting_rows(config, 16, Row(), 5 * one - 1) == 4
    assert fitting_rows(config, 16, Row(), -1) == 0
    check_batch(config, 16, Row(), 5, 5 * one)
    with pytest.raises(TooLargeError, match=r"64 prompts need 18\.\d GB .* 1\.5 GB are free; give at most 5 at a time"):
        check_batch(config, 16, Row(), 64, 5 * one)
    with pytest.raises(TooLargeError, match=r"a prompt about 4 pictures need.*fewer pictures"):
        check_batch(config, 16, Row(pictures=4), 1, one)


@pytest.mark.parametrize("package", [mlx_paligemma, torch_ref], ids=["mlx", "torch"])
def test_a_batch_that_has_been_made_is_reckoned_by_its_own_sizes(only, package):
    model, processor = package.load()
    inputs = processor([[PICTURE, PICTURE]] * 3, ["caption en"] * 3)
    queries = fused_layers.QUERIES if package is mlx_paligemma else None
    text = inputs.input_ids.shape[1] - 2 * processor.config.vision.num_patches
    need = 3 * row_bytes(processor.config, Row(2, text, 50, queries), 32)
    check = (memory if package is mlx_paligemma else torch_memory).check_batch
    only(need)
    check(model, inputs, 50)
    only(need - 1)
    with pytest.raises(TooLargeError, match=r"3 prompts need .* give at most 2"):
        check(model, inputs, 50)


@pytest.mark.parametrize("package", [mlx_paligemma, torch_ref], ids=["mlx", "torch"])
def test_a_model_that_is_too_large_is_refused_before_any_tensor_is_read(tmp_path, monkeypatch, only, package):
    write(tmp_path, tensors())
    need = needed_bytes(read_checkpoint(tmp_path).config, 32)
    only(need - 1)
    reader = "read_tensors" if package is mlx_paligemma else "_read_tensors"
    monkeypatch.setattr(f"{package.__name__}.weights.{reader}", lambda *_: pytest.fail("a tensor was read"))
    with pytest.raises(TooLargeError, match="the model needs"):
        package.load(tmp_path)


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_the_command_says_it_in_one_line_and_ends_with_1(monkeypatch, capfd, only, backend):
    only(1_000_000)
    code, out, err = program(monkeypatch, capfd)("generate", PICTURE, "-p", "caption en", "--backend", backend)
    assert (code, out) == (1, "")
    one_line(err, "error: the model needs", "1 MB are free")


@pytest.mark.parametrize("backend", ["mlx", "torch"])
def test_a_batch_that_does_not_fit_is_answered_in_smaller_ones_with_the_same_answers(monkeypatch, capfd, backend):
    run = program(monkeypatch, capfd)
    arguments = ("generate", *[PICTURE] * 3, "-p", "caption en", "-m", 4, "--backend", backend)
    alone = run(*arguments)
    asked, ended = [], []
    monkeypatch.setattr(*((mx, "clear_cache") if backend == "mlx" else (torch_ref.device, "free_memory")), lambda: ended.append(1))
    monkeypatch.setattr(reckoning, "fitting_rows", lambda config, bits, row, free: asked.append((bits, row)) or 2)
    code, out, err = run(*arguments, "--batch-size", 3)
    assert (code, out) == (0, alone[1])
    assert err.startswith("note: 2 pictures are answered together instead of 3") and err.count("\n") == len(set(err.splitlines()))
    assert len(ended) == 2  # batches
    bits, row = asked[0]
    assert (bits, row.pictures, row.new_tokens) == (32, 1, 4)
    assert 0 < row.text_tokens < 10


def test_a_batch_that_fits_is_left_as_it_was_asked_for(monkeypatch, capfd):
    err = program(monkeypatch, capfd)("generate", *[PICTURE] * 3, "-p", "caption en", "--batch-size", 64)[2]
    assert "answered together" not in err
