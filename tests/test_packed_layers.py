"""Folders of mlx-community load in both backends and give the same logits: MLX keeps the weights packed, PyTorch unpacks them."""

import json
from dataclasses import dataclass
from functools import cache

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from packed_checkpoints import (
    OWN_HEAD,
    PADDED,
    TABLE,
    Weights,
    affine,
    config_json,
    dequantised,
    everything,
    of_mode,
    pack,
    text_alone,
    weights,
    with_wide_mlp,
    write_packed,
)
from parity.batches import random_inputs, tokens
from parity.compare import mlx_decoded, mlx_logits, relative_error, torch_decoded, torch_logits
from pictures import noise
from program import PICTURE, program

from mlx_paligemma import batch_generate, generate, load
from mlx_paligemma import weights as mlx_weights
from mlx_paligemma.common.checkpoint import read_checkpoint
from mlx_paligemma.common.packed import Packing
from mlx_paligemma.common.tensors import EMBEDDING, HEAD, PATCHES, POSITIONS
from mlx_paligemma.fusion import decoder, fuse
from mlx_paligemma.generation import as_mlx
from mlx_paligemma.model.kv_cache import KVCache
from mlx_paligemma.packed_layers import PackedLinear, packed, times, unpacked
from torch_ref import batch_generate as torch_batch_generate
from torch_ref import load as torch_load
from torch_ref import weights as torch_weights

LIMIT = 5e-6  # of the largest logit, float32: the same products in another order
SUFFIX = np.random.default_rng(1).integers(3, 60, (3, 5)).astype(np.int32)


@dataclass(frozen=True)
class Form:
    """How a folder was made."""

    packed: object  # settings by module
    dtype: mx.Dtype = mx.bfloat16
    says: object = None  # what config.json says; None: nothing
    padded: bool = False
    head: str = "tied"
    shards: int = 1


def mixed(module: str):
    """Each kind of layer in a form of its own, and some in none."""
    forms = {"q_proj": affine(4), "k_proj": affine(8, 32), "v_proj": None, "o_proj": affine(3, 128), "gate_proj": of_mode("mxfp4"),
             "up_proj": affine(6), "down_proj": of_mode("nvfp4"), "embed_tokens": affine(8, 32)}  # fmt: skip
    return forms.get(module.rpartition(".")[2]) if module.startswith("language_model.") else None


FORMS = {
    "old, 4 bits": Form(everything(affine(4)), mx.float16, {"group_size": 64, "bits": 4}, padded=True),
    "old, 8 bits, shards": Form(everything(affine(8)), mx.bfloat16, {"group_size": 64, "bits": 8}, padded=True, shards=3),
    "new, 4 bits": Form(text_alone(affine(4)), mx.float16, {"group_size": 64, "bits": 4, "mode": "affine"}),
    "new, 3 bits": Form(text_alone(affine(3, 32)), says={"group_size": 32, "bits": 3}),
    "new, 5 bits, config silent": Form(text_alone(affine(5, 128))),
    "new, 6 bits, config wrong": Form(text_alone(affine(6)), says={"group_size": 128, "bits": 4, "mode": "mxfp4"}),
    "mxfp4": Form(text_alone(of_mode("mxfp4")), says=of_mode("mxfp4")),
    "mxfp8": Form(everything(of_mode("mxfp8")), padded=True, says=of_mode("mxfp8")),
    "nvfp4": Form(text_alone(of_mode("nvfp4")), mx.float16, of_mode("nvfp4")),
    "mixed": Form(mixed, says=affine(4)),
    "vision alone": Form(lambda module: None if module.startswith("language_model.") else affine(4), padded=True),
    "own head": Form(text_alone(affine(4)), head="own"),
    "own head in 8 bits": Form(lambda module: affine({TABLE: 4, OWN_HEAD: 8}.get(module, 4)), padded=True, head="own"),
    "own head of floats": Form(lambda module: affine(4) if module == TABLE else None, head="own"),
    "equal head": Form(text_alone(affine(4)), head="equal"),
    "float32": Form(text_alone(affine(4)), mx.float32),
}


@dataclass(frozen=True)
class Made:
    """A folder, and the numbers that it holds."""

    form: Form
    folder: object
    numbers: Weights  # float32, unpacked

    @property
    def checkpoint(self):
        return read_checkpoint(self.folder)

    def model(self, dtype="float32"):
        return mlx_weights.load_model(self.checkpoint, dtype)

    def reference(self):
        return torch_weights.load_model(self.checkpoint, "float32")

    def inputs(self):
        return random_inputs(self.checkpoint.config, (12, 9, 5), (9, 4, 12), (1, 2, 1))

    def prompts(self):
        return random_inputs(self.checkpoint.config, (12, 9, 5))


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """make(name, generation)."""

    @cache
    def made(name: str, generation: int) -> Made:
        form = FORMS[name]
        data = config_json(generation)
        tensors = weights(data, form.head)
        if form.padded:
            tensors, data = with_wide_mlp(tensors), config_json(generation, {"intermediate_size": PADDED, "skip_vision": False})
        folder = write_packed(
            tmp_path_factory.mktemp("packed"), pack(tensors, form.packed, form.dtype), data, form.says, form.shards
        )
        return Made(form, folder, dequantised(tensors, form.packed, form.dtype))

    return made


RARE = ("new, 3 bits", "new, 5 bits, config silent", "own head in 8 bits", "float32")  # what others show too
QUICK = [(name, index % 2 + 1) for index, name in enumerate(FORMS) if name not in RARE]
BOTH = [pytest.param((name, generation), id=f"{name}, PaliGemma {generation}",
                     marks=() if (name, generation) in QUICK else pytest.mark.slow)
        for name in FORMS for generation in (1, 2)]  # fmt: skip


@pytest.fixture(params=BOTH)
def made(request, make) -> Made:
    """Each form of one generation, and with -m slow of the other one too."""
    return make(*request.param)


def test_pytorch_unpacks_exactly_the_numbers_of_the_folder(made):
    state = made.reference().state_dict()
    wanted = made.numbers if made.form.head == "own" else {name: array for name, array in made.numbers.items() if name != HEAD}
    assert state.keys() == wanted.keys()
    for name, array in wanted.items():
        assert state[name].dtype == torch.float32
        assert np.array_equal(state[name].numpy(), np.array(array)), name


def test_mlx_keeps_what_is_packed_and_unpacks_the_position_table(made):
    found = dict(tree_flatten(made.model().parameters()))
    matrices = {name for name, array in made.numbers.items() if array.ndim == 2 and made.form.packed(name.removesuffix(".weight"))}
    dropped = {f"{POSITIONS}.weight", HEAD if made.form.head == "equal" else ""}
    assert {name for name, array in found.items() if array.dtype == mx.uint32} == matrices - dropped
    assert np.array_equal(np.array(found[f"{POSITIONS}.weight"]), np.array(made.numbers[f"{POSITIONS}.weight"]))


def test_a_head_equal_to_the_table_is_tied_and_one_of_its_own_is_kept(made):
    is_own = made.form.head == "own"
    assert [made.model().config.tie_word_embeddings, made.reference().config.tie_word_embeddings] == [not is_own] * 2
    assert ("lm_head" in made.model()) == is_own


def test_logits_are_those_of_the_reference(made):
    inputs, model, reference = made.inputs(), made.model(), made.reference()
    real = tokens(inputs)
    wanted = torch_logits(reference, inputs)[real]
    assert wanted.std() > 0.2
    assert relative_error(mlx_logits(model, inputs)[real], wanted) < LIMIT
    run = (made.prompts(), SUFFIX, [1, 3, 1])
    assert relative_error(mlx_decoded(model, *run), torch_decoded(reference, *run)) < LIMIT


def test_the_fused_model_gives_the_same_logits(made):
    inputs = made.inputs()
    real = tokens(inputs)
    model, fused = made.model(), fuse(made.model())
    assert relative_error(mlx_logits(fused, inputs)[real], mlx_logits(model, inputs)[real]) < LIMIT
    run = (made.prompts(), SUFFIX, [1, 3, 1])
    assert relative_error(mlx_decoded(fused, *run), mlx_decoded(model, *run)) < LIMIT


def test_some_rows_of_the_output_layer_are_those_of_all(made):
    fused = fuse(made.model())
    hidden = mx.random.normal((1, 2, 128), key=mx.random.key(0))
    whole = fused.logits(hidden)
    for first, last in ((0, 7), (60, 196), (whole.shape[-1] - 1, whole.shape[-1])):
        rows = np.array(fused.logits(hidden, (first, last)))
        assert rows.shape == (1, 2, last - first)
        assert relative_error(rows, np.array(whole[..., first:last])) < LIMIT


@pytest.mark.parametrize("fused", [pytest.param(False, marks=pytest.mark.slow), True], ids=["model", "fused"])
def test_half_precision_stays_half_precision(made, fused):
    dtype = "float16" if made.form.dtype == mx.float16 else "bfloat16"
    kind, model, arrays = getattr(mx, dtype), made.model(dtype), as_mlx(made.prompts())
    model = fuse(model) if fused else model
    floats = {array.dtype for _, array in tree_flatten(model.parameters())} - {mx.uint32, mx.uint8}
    cache = KVCache(model.config.text, 3, 256, kind, arrays["padding"])
    rows = model.encode_images(arrays["pixel_values"])
    embedded = model.embed(arrays["input_ids"], rows)
    logits = model.prefill(arrays["input_ids"], rows, cache)
    kept = {layer.keys.dtype for layer in cache.layers} | {layer.values.dtype for layer in cache.layers}
    following = decoder(model, cache)(mx.array([[3], [4], [5]]))
    assert {rows.dtype, embedded.dtype, logits.dtype, following.dtype} | kept | floats == {kind}
    assert mx.isfinite(following).all().item()


@pytest.mark.parametrize(("name", "generation"), [("old, 4 bits", 1), ("mixed", 2)])
def test_batches_answer_as_single_pictures_do_and_as_the_reference(make, name, generation):
    made = make(name, generation)
    pictures, prompts = [noise(side, 30) for side in (20, 30, 40)], ["caption en", "answer en is it a cat?", "detect cat ; dog"]
    model, processor = load(made.folder, dtype="float32")
    batch = batch_generate(model, processor, pictures, prompts, max_tokens=8)
    single = [generate(model, processor, *pair, max_tokens=8) for pair in zip(pictures, prompts, strict=True)]
    reference = torch_batch_generate(*torch_load(made.folder, dtype="float32", device="cpu"), pictures, prompts, max_tokens=8)
    found = [[result.token_ids for result in results] for results in (batch, single, reference)]
    assert found[0] == found[1] == found[2]
    assert len({tuple(ids) for ids in found[0]}) == 3 and all(found[0])


@pytest.mark.parametrize(("name", "generation"), [("old, 8 bits, shards", 2), pytest.param("mixed", 1, marks=pytest.mark.slow)])
def test_the_parity_command_finds_nothing_wrong_in_float32(make, monkeypatch, capfd, name, generation):
    run = program(monkeypatch, capfd)
    arguments = ("--image", PICTURE, "-p", "detect cat", "--dtype", "float32", "--max-tokens", 4, "--json")
    code, out, err = run("parity", "--model", make(name, generation).folder, *arguments)
    assert code == 0, err
    report = json.loads(out)
    assert report["verdict"] == "pass" and len(report["modules"]) > 50


def test_a_packed_module_is_called_what_its_layer_was(make):
    made = make("old, 4 bits", 1)
    model = made.model()
    assert isinstance(model.language_model.embed_tokens, nn.QuantizedEmbedding)
    assert isinstance(model.multi_modal_projector.linear, nn.QuantizedLinear)
    assert model.language_model.layers[0].self_attn.q_proj.bits == 4


@pytest.mark.parametrize("packing", [Packing(3, 32), Packing(4, 64), Packing(8, 128), Packing(4, 32, "mxfp4")], ids=str)
def test_packing_names_the_parts_of_a_module_and_unpacking_rounds_once(packing):
    matrix = mx.random.normal((5000, 128), key=mx.random.key(0))  # more rows than are unpacked at a time
    parts = packed(EMBEDDING, matrix.astype(mx.bfloat16), packing)
    assert list(parts) == [f"{TABLE}.{part}" for part in ("weight", "scales", "biases")[: 3 if packing.mode == "affine" else 2]]
    exact = unpacked(parts, packing, mx.float32)
    assert exact.dtype == mx.float32 and exact.shape == matrix.shape
    assert 0 < mx.abs(exact - matrix).max().item() < 1
    for dtype in (mx.bfloat16, mx.float16):
        assert mx.array_equal(unpacked(parts, packing, dtype), exact.astype(dtype))


def test_the_patch_kernel_is_read_with_channels_last(make):
    made = make("new, 4 bits", 1)
    assert made.checkpoint.channels_last
    assert np.array_equal(np.array(made.model().parameters()["vision_tower"]["embeddings"]["patch_embedding"]["weight"]),
                          np.array(made.numbers[PATCHES]).transpose(0, 2, 3, 1))  # fmt: skip


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_products_of_half_precision_are_added_up_in_float32(dtype):
    """On the CPU MLX 0.32.4 adds them up as they are: ones past 256 are lost in bfloat16."""
    width = 4096
    layer = PackedLinear(width, 2, True, 64, 8)
    ones = packed("x.weight", mx.ones((2, width), dtype), Packing(8, 64))
    layer.update({name.removeprefix("x."): array for name, array in ones.items()} | {"bias": mx.array([1.0, -1.0]).astype(dtype)})
    matrix = mx.dequantize(layer.weight, layer.scales, layer.biases, 64, 8).astype(mx.float32)
    exact = np.array(matrix).sum(-1) + np.array([1, -1])
    found = layer(mx.ones((1, width), dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(np.array(found.astype(mx.float32))[0], exact, rtol=2**-8)
    assert mx.array_equal(found, times(mx.ones((1, width), dtype), layer) + layer.bias)
