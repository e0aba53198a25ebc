"""Both backends read the same numbers from the same folder, in every layout, and nothing is left out or made up."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from checkpoints import IMAGE_TOKEN, LAYOUTS, config_json, tensors, write
from mlx.utils import tree_flatten
from PIL import Image

import mlx_paligemma
import torch_ref
from mlx_paligemma import weights as mlx_weights
from mlx_paligemma.common.checkpoint import read_checkpoint
from mlx_paligemma.common.errors import CheckpointError, OptionError
from mlx_paligemma.common.hub import bundled_checkpoint
from mlx_paligemma.common.mask_codec import FILE_NAME, MaskCodecConfig
from mlx_paligemma.common.tensors import EMBEDDING, HEAD, PATCHES
from mlx_paligemma.fusion import FusedPaliGemma
from mlx_paligemma.model.paligemma import PaliGemma
from torch_ref import weights as torch_weights

BACKENDS = {"mlx": mlx_weights, "torch": torch_weights}
DTYPES = ["float32", "bfloat16", "float16"]
PICTURE = Image.new("RGB", (30, 20), "orange")
PEAK = 1.1  # of the final size, while a checkpoint is read


@pytest.fixture(params=BACKENDS)
def backend(request):
    return BACKENDS[request.param]


def held(model) -> tuple[dict[str, np.ndarray], set[str]]:
    """A network's parameters by name, in PyTorch layout and float32, and the names of the dtypes that they have."""
    if not isinstance(model, PaliGemma):
        state = model.state_dict()
        return {name: w.float().numpy() for name, w in state.items()}, {str(w.dtype).split(".")[-1] for w in state.values()}
    parameters = dict(tree_flatten(model.parameters()))
    arrays = {name: np.array(w.astype(mx.float32)) for name, w in parameters.items()}
    if not isinstance(model, FusedPaliGemma):
        arrays[PATCHES] = arrays[PATCHES].transpose(0, 3, 1, 2)
    return arrays, {str(w.dtype).split(".")[-1] for w in parameters.values()}


def logits(model) -> np.ndarray:
    """float32 [5, V] of a grey picture and a fixed token."""
    ids = np.array([[IMAGE_TOKEN] * 4 + [2]], dtype=np.int32)
    pixels = np.full((1, 1, 28, 28, 3), 0.5, dtype=np.float32)
    if isinstance(model, PaliGemma):
        return np.array(model(mx.array(ids), mx.array(pixels)).astype(mx.float32))[0]
    return model(torch.from_numpy(ids), torch.from_numpy(pixels))[0].float().detach().numpy()


def assert_same(model, expected, dtype="float32"):
    arrays, dtypes = held(model)
    assert dtypes == {dtype}
    assert arrays.keys() == expected.keys()
    for name, tensor in expected.items():
        assert np.array_equal(arrays[name], tensor.to(getattr(torch, dtype)).float().numpy()), name


@pytest.mark.parametrize("model_type", ["gemma", "gemma2"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shards", [1, 3])
def test_every_layout_gives_both_backends_every_number(tmp_path, layout, shards, model_type):
    data = config_json(model_type)
    expected = tensors(data)
    write(tmp_path, expected, data=data, layout=layout, shards=shards)
    for backend in BACKENDS.values():
        assert_same(backend.load_model(read_checkpoint(tmp_path)), expected)


def test_what_transformers_saves_is_what_both_backends_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PaliGemmaForConditionalGeneration(transformers.PaliGemmaConfig(**config_json()))
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    models = [backend.load_model(read_checkpoint(tmp_path)) for backend in BACKENDS.values()]
    (ours, _), (reference, _) = map(held, models)
    assert ours.keys() == reference.keys()
    assert all(np.array_equal(ours[name], reference[name]) for name in ours)
    state = theirs.state_dict()
    assert np.array_equal(ours[EMBEDDING], state["model.language_model.embed_tokens.weight"].numpy())
    assert sum(w.size for w in ours.values()) == sum(w.numel() for name, w in state.items() if "lm_head" not in name)


@pytest.mark.parametrize("stored", DTYPES)
def test_weights_keep_the_dtype_that_they_are_stored_in(tmp_path, backend, stored):
    expected = tensors(dtype=getattr(torch, stored))
    assert_same(backend.load_model(read_checkpoint(write(tmp_path, expected))), expected, stored)


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("wanted", DTYPES)
def test_the_dtype_option_casts_every_weight(tmp_path, backend, stored, wanted):
    expected = tensors(dtype=getattr(torch, stored))
    assert_same(backend.load_model(read_checkpoint(write(tmp_path, expected)), wanted), expected, wanted)


def test_a_file_of_mixed_dtypes_is_read_in_that_of_its_embedding(tmp_path, backend):
    expected = {name: w.to(torch.bfloat16 if name == EMBEDDING else torch.float32) for name, w in tensors().items()}
    assert_same(backend.load_model(read_checkpoint(write(tmp_path, expected))), expected, "bfloat16")


def test_a_patch_kernel_with_channels_last_gives_the_same_model(tmp_path, backend):
    expected = tensors()
    stored = expected | {PATCHES: expected[PATCHES].permute(0, 2, 3, 1).contiguous()}
    assert_same(backend.load_model(read_checkpoint(write(tmp_path, stored))), expected)


@pytest.mark.parametrize("says", [None, True, False], ids=["config silent", "config tied", "config untied"])
def test_a_head_equal_to_the_embedding_is_tied(tmp_path, backend, says):
    expected = tensors()
    data = config_json(**({} if says is None else {"tie_word_embeddings": says}))
    write(tmp_path, expected | {HEAD: expected[EMBEDDING].clone()}, data=data)
    model = backend.load_model(read_checkpoint(tmp_path))
    assert model.config.tie_word_embeddings
    assert_same(model, expected)


@pytest.mark.parametrize("says", [None, True, False], ids=["config silent", "config tied", "config untied"])
def test_a_head_of_its_own_is_kept_and_makes_the_logits(tmp_path, backend, says):
    expected = tensors(head=True)
    data = config_json(**({} if says is None else {"tie_word_embeddings": says}))
    model = backend.load_model(read_checkpoint(write(tmp_path / "own", expected, data=data)))
    assert not model.config.tie_word_embeddings
    assert_same(model, expected)
    tied = logits(backend.load_model(read_checkpoint(write(tmp_path / "tied", tensors()))))
    doubled = logits(backend.load_model(read_checkpoint(write(tmp_path / "two", expected | {HEAD: 2 * expected[HEAD]}, data=data))))
    assert np.abs(logits(model) - tied).max() > 0.1
    np.testing.assert_allclose(doubled, 2 * logits(model), rtol=1e-5, atol=1e-5)


def test_both_backends_make_the_same_logits_with_a_head_of_its_own(tmp_path):
    checkpoint = read_checkpoint(write(tmp_path, tensors(head=True)))
    mlx, reference = (logits(backend.load_model(checkpoint)) for backend in BACKENDS.values())
    np.testing.assert_allclose(mlx, reference, rtol=1e-4, atol=1e-4)


def test_load_gives_a_model_and_a_processor_that_answer(tmp_path):
    write(tmp_path)
    answers = []
    for package in (mlx_paligemma, torch_ref):
        model, processor = package.load(str(tmp_path))
        assert processor.config == model.config
        assert processor.decode_masks is None
        answers.append(package.generate(model, processor, PICTURE, "detect cat", max_tokens=6).token_ids)
    assert answers[0] == answers[1]


@pytest.mark.parametrize("package", [mlx_paligemma, torch_ref], ids=["mlx", "torch"])
def test_load_casts_to_the_dtype_asked_for(tmp_path, package):
    model, _ = package.load(write(tmp_path), dtype="bfloat16")
    assert held(model)[1] == {"bfloat16"}


@pytest.mark.parametrize("package", [mlx_paligemma, torch_ref], ids=["mlx", "torch"])
def test_the_bundled_demo_computes_in_float32_whatever_it_is_stored_in(package):
    if not bundled_checkpoint().exists():
        pytest.skip("the demo checkpoint is not there: run `make train-demo` first")
    assert held(package.load()[0])[1] == {"float32"}
    assert held(package.load(dtype="float16")[0])[1] == {"float16"}


@pytest.mark.parametrize("package", [mlx_paligemma, torch_ref], ids=["mlx", "torch"])
def test_load_refuses_an_unknown_dtype_and_a_folder_without_vocabulary(tmp_path, package):
    write(tmp_path)
    with pytest.raises(OptionError, match="'float64' is unknown"):
        package.load(tmp_path, dtype="float64")
    (tmp_path / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.model"):
        package.load(tmp_path)


@pytest.mark.parametrize("package", [mlx_paligemma, torch_ref], ids=["mlx", "torch"])
def test_a_vocabulary_of_another_model_is_refused_before_it_can_spoil_answers(tmp_path, package):
    write(tmp_path, data=config_json(image_token_index=IMAGE_TOKEN - 1))
    with pytest.raises(CheckpointError, match="image_token_index"):
        package.load(tmp_path)


def test_a_model_can_be_loaded_without_a_vocabulary(tmp_path, backend):
    (write(tmp_path) / "tokenizer.model").unlink()
    assert_same(backend.load_model(read_checkpoint(tmp_path)), tensors())


def test_an_unknown_device_of_the_reference_is_an_option_error(tmp_path):
    with pytest.raises(OptionError, match="device 'tpu' is not available here"):
        torch_ref.load(write(tmp_path), device="tpu")


def write_codec(folder, **changes) -> None:
    """A small random mask codec."""
    rng = np.random.default_rng(0)
    shapes = MaskCodecConfig(widths=(2, 3, 4, 4), embedding_dim=5).shapes()
    arrays = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    np.savez(folder / FILE_NAME, **(arrays | changes))


def test_both_backends_decode_masks_with_the_codec_of_the_folder(tmp_path):
    write(tmp_path)
    write_codec(tmp_path)
    codes = np.random.default_rng(0).integers(0, 128, (3, 16))
    masks = [package.load(tmp_path)[1].decode_masks(codes) for package in (mlx_paligemma, torch_ref)]
    assert masks[0].shape == masks[1].shape == (3, 64, 64)
    assert masks[0].std() > 0.1
    np.testing.assert_allclose(masks[0], masks[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("package", [mlx_paligemma, torch_ref], ids=["mlx", "torch"])
def test_a_damaged_codec_is_complained_about_when_a_mask_is_wanted_and_not_before(tmp_path, package):
    write(tmp_path)
    (tmp_path / FILE_NAME).write_bytes(b"no archive")
    _, processor = package.load(tmp_path)
    with pytest.raises(CheckpointError, match="not a readable mask codec"):
        processor.decode_masks(np.zeros((1, 16), dtype=int))


def test_a_config_that_loses_the_gemma_2_norms_does_not_load(tmp_path):
    write(tmp_path, data=config_json("gemma2"))
    data = json.loads((tmp_path / "config.json").read_text())
    data["text_config"]["model_type"] = "gemma"
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="has unknown"):
        read_checkpoint(tmp_path)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """wide(head): folder of 166 MB in float32, in three shards; the embedding, and a head equal to it, lie in the last."""
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "head_dim": 64, "vocab_size": 16384}
    data = config_json("gemma2", text=text, projection_dim=512)
    expected = tensors(data)
    others = [name for name in expected if name != EMBEDDING]
    order = [*others[:2], EMBEDDING, *others[2:4], HEAD, *others[4:]]  # every third is in the same shard
    expected[HEAD] = expected[EMBEDDING].clone()

    @cache
    def folder(head: bool) -> Path:
        chosen = {name: expected[name] for name in order if head or name != HEAD}
        return write(tmp_path_factory.mktemp("wide"), chosen, data=data, shards=3)

    return folder


@pytest.mark.parametrize("head", [False, True], ids=["tied", "head equal to the embedding"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_reading_takes_hardly_more_memory_than_the_model(wide, dtype, head):
    checkpoint = read_checkpoint(wide(head))
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = mlx_weights.load_model(checkpoint, dtype)
    final = sum(w.nbytes for _, w in tree_flatten(model.parameters()))
    assert mx.get_active_memory() - before == pytest.approx(final, rel=0.01)
    assert (mx.get_peak_memory() - before) / final <= PEAK


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's count of a process's memory")
@pytest.mark.parametrize("name", BACKENDS)
def test_the_process_grows_hardly_more_than_by_the_model(wide, name):
    """Its largest resident size, mapped files included, up to a model ready for answers.

    MLX's cache has no limit, as on a Mac, and freed memory goes back to the system. A first small model takes what is taken once.
    """
    small, large = wide(False).parent / "small", wide(True)
    write(small)
    command, at_once = [sys.executable, "-c", GROWTH, name, small, large], os.environ | {"MALLOC_MMAP_THRESHOLD_": "100000"}
    done = subprocess.run(command, env=at_once, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    grown, final = map(int, done.stdout.split())
    assert grown / final <= PEAK + 0.05  # of 70 MB; the rest of the interpreter grows too


GROWTH = """
import sys
from importlib import import_module
from pathlib import Path
from mlx_paligemma.common.checkpoint import read_checkpoint
from mlx_paligemma.common.memory import weight_bytes

def resident(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])

package, small, large = sys.argv[1:]
if package == "mlx":
    import mlx.core
    mlx.core.set_cache_limit(2**40)
load = import_module({"mlx": "mlx_paligemma", "torch": "torch_ref"}[package] + ".weights").load
kept = load(small, dtype="bfloat16")
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the largest so far is the present
model, processor = load(large, dtype="bfloat16")
print(resident("VmHWM") - before, weight_bytes(model.config, 16))
"""
