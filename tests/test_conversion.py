"""What becomes of each tensor: dtype, packing, padding, layout, heads; and which wishes exclude each other."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from checkpoints import config_json as tiny_config
from checkpoints import tensors, write
from packed_checkpoints import (
    OWN_HEAD,
    PADDED,
    TABLE,
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
from parity.batches import random_inputs
from parity.compare import mlx_logits, relative_error

from mlx_paligemma.common.checkpoint import read_checkpoint
from mlx_paligemma.common.errors import CheckpointError, OptionError
from mlx_paligemma.common.packed import Packing
from mlx_paligemma.common.tensors import EMBEDDING, HEAD, PATCHES, POSITIONS, expected_shapes
from mlx_paligemma.conversion import Conversion
from mlx_paligemma.quantization import Recipe
from mlx_paligemma.weights import load_model

FC1, FC2 = ("vision_tower.encoder.layers.0.mlp.fc1", "vision_tower.encoder.layers.0.mlp.fc2")
REAL_VISION = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 1, "num_attention_heads": 16}


def converted(checkpoint, **wishes) -> dict[str, mx.array]:
    found = {}
    for group in Conversion(checkpoint, **wishes).tensors():
        found |= group
    return found


def hub_folder(folder, data, made, dtype=torch.float32):
    """An unquantised folder of the Hub with these weights."""
    return write(folder, {name: torch.from_numpy(np.array(array, order="C")).to(dtype) for name, array in made.items()}, data=data)


@pytest.fixture
def plain(tmp_path):
    """plain(dtype="float32", head="tied"): an unquantised checkpoint, and its weights."""

    def made(dtype="float32", head="tied"):
        data = config_json(2)
        found = weights(data, head)
        return read_checkpoint(hub_folder(tmp_path / "plain", data, found, getattr(torch, dtype))), found

    return made


@pytest.fixture
def old(tmp_path):
    """What the older mlx-vlm makes of such a checkpoint, and the numbers in it."""
    data, form = config_json(1, {"intermediate_size": PADDED}), everything(affine(4))
    made = with_wide_mlp(weights(config_json(1)))
    folder = write_packed(tmp_path / "old", pack(made, form, mx.bfloat16), data, affine(4))
    return read_checkpoint(folder), dequantised(made, form, mx.bfloat16)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("to", ["mlx", "hf"])
def test_without_wishes_each_number_stays_as_it_is_stored(plain, dtype, to):
    checkpoint, made = plain(dtype, "own")
    found = converted(checkpoint, to=to)
    assert found.keys() == made.keys()
    for name, array in made.items():
        wanted = array.astype(getattr(mx, dtype))
        wanted = wanted.transpose(0, 2, 3, 1) if name == PATCHES and to == "mlx" else wanted
        assert found[name].dtype == wanted.dtype and mx.array_equal(found[name], wanted), name


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_the_dtype_asked_for_is_that_of_all_floats(plain, stored):
    checkpoint, _ = plain(stored)
    assert {array.dtype for array in converted(checkpoint, dtype="float16").values()} == {mx.float16}
    assert Conversion(checkpoint, dtype="float16").float_dtype == "float16"


@pytest.mark.parametrize(("stored", "kept"), [("float32", "bfloat16"), ("bfloat16", "bfloat16"), ("float16", "float16")])
def test_a_recipe_keeps_the_floats_in_half_precision(plain, stored, kept):
    checkpoint, _ = plain(stored)
    found = converted(checkpoint, recipe=Recipe())
    assert {array.dtype for array in found.values()} == {mx.uint32, getattr(mx, kept)}
    assert Conversion(checkpoint, recipe=Recipe()).float_dtype == kept
    whole = converted(checkpoint, recipe=Recipe(), dtype="float32")
    assert {array.dtype for array in whole.values()} == {mx.uint32, mx.float32}


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(3, 32), Recipe(mode="mxfp8"), Recipe(mixed="mixed_4_8")], ids=str)
def test_modules_are_packed_as_planned_and_as_mlx_packs_them(plain, recipe):
    checkpoint, made = plain("bfloat16")
    conversion = Conversion(checkpoint, recipe=recipe)
    found = converted(checkpoint, recipe=recipe)
    for module, packing in conversion.packings.items():
        parts = mx.quantize(made[f"{module}.weight"].astype(mx.bfloat16), **packing.settings())
        for part, array in zip(("weight", "scales", "biases"), parts, strict=False):
            assert mx.array_equal(found.pop(f"{module}.{part}"), array)
    assert found.keys() == {name for name in made if name.removesuffix(".weight") not in conversion.packings}


def test_a_padded_vision_mlp_gives_the_same_logits(plain):
    checkpoint, _ = plain()
    conversion = Conversion(checkpoint, recipe=Recipe(vision=True), dtype="float32")
    assert conversion.config.vision.intermediate_size == PADDED
    found = converted(checkpoint, recipe=Recipe(vision=True), dtype="float32")
    assert found[f"{FC1}.weight"].shape == (PADDED, 16) and found[f"{FC1}.bias"].shape == (PADDED,)  # 4 bits: 8 to a word
    assert found[f"{FC2}.weight"].shape == (128, PADDED // 8) and found[f"{FC2}.bias"].shape == (128,)
    assert mx.abs(found[f"{FC1}.bias"][100:]).max().item() == 0
    assert mx.abs(mx.dequantize(*(found[f"{FC1}.{part}"] for part in ("weight", "scales", "biases")))[100:]).max().item() == 0


@pytest.mark.parametrize("head", ["tied", "equal"])
def test_a_head_that_is_the_embedding_is_dropped(plain, head):
    checkpoint, _ = plain("float32", head)
    assert HEAD not in converted(checkpoint) and Conversion(checkpoint).config.tie_word_embeddings


def test_a_head_of_its_own_stays_and_is_packed_like_the_table(plain):
    checkpoint, made = plain("float32", "own")
    assert mx.array_equal(converted(checkpoint)[HEAD], made[HEAD])
    conversion = Conversion(checkpoint, recipe=Recipe())
    assert not conversion.config.tie_word_embeddings and conversion.packings[OWN_HEAD] == Packing(8, 64)


def test_a_packed_head_that_is_the_embedding_is_dropped_with_its_scales(tmp_path):
    made = weights(config_json(1), "equal")
    folder = write_packed(tmp_path, pack(made, text_alone(affine(4)), mx.bfloat16), config_json(1), None)
    conversion = Conversion(read_checkpoint(folder))
    assert OWN_HEAD not in conversion.packings and TABLE in conversion.packings
    assert not [name for group in conversion.tensors() for name in group if name.startswith(OWN_HEAD)]


@pytest.mark.parametrize("form", [affine(4), affine(3, 32), of_mode("mxfp4"), of_mode("nvfp4")], ids=str)
def test_what_is_packed_stays_so_bit_for_bit(tmp_path, form):
    arrays = pack(weights(config_json(2)), text_alone(form), mx.float16)
    folder = write_packed(tmp_path, arrays, config_json(2), None)
    found = converted(read_checkpoint(folder))
    assert found.keys() == arrays.keys()
    assert all(found[name].dtype == array.dtype and mx.array_equal(found[name], array) for name, array in arrays.items())


def test_a_packed_position_table_is_unpacked_for_other_programs(old):
    checkpoint, numbers = old
    conversion = Conversion(checkpoint)
    assert POSITIONS not in conversion.packings
    found = converted(checkpoint)[f"{POSITIONS}.weight"]
    assert mx.array_equal(found, numbers[f"{POSITIONS}.weight"].astype(mx.bfloat16))


@pytest.mark.parametrize("dtype", [None, "float32"])
@pytest.mark.parametrize("form", [affine(4), affine(5, 32), of_mode("mxfp4"), of_mode("mxfp8"), of_mode("nvfp4")], ids=str)
def test_unpacked_numbers_are_rounded_once_to_the_dtype_of_the_rest(tmp_path, form, dtype):
    made = weights(config_json(1))
    folder = write_packed(tmp_path, pack(made, text_alone(form), mx.float16), config_json(1), None)
    found = converted(read_checkpoint(folder), dequantize=True, dtype=dtype)
    numbers = dequantised(made, text_alone(form), mx.float16)
    for name, array in numbers.items():
        wanted = array.transpose(0, 2, 3, 1) if name == PATCHES else array
        assert mx.array_equal(found[name], wanted.astype(mx.float16 if dtype is None else mx.float32)), name


def real_widths(text: dict) -> dict:
    """SigLIP's true widths in one layer, beside a tiny text model."""
    data = config_json(1, REAL_VISION)
    return data | {"text_config": data["text_config"] | text}


def test_siglip_is_padded_from_4304_to_4352_and_back(tmp_path):
    data = real_widths({"num_hidden_layers": 1})
    made = weights(data)
    checkpoint = read_checkpoint(hub_folder(tmp_path / "hf", data, made))
    conversion = Conversion(checkpoint, recipe=Recipe(8, vision=True), dtype="float32")
    assert conversion.config.vision.intermediate_size == 4352
    assert {FC1, FC2} <= conversion.packings.keys()
    arrays = {name: array for group in conversion.tensors() for name, array in group.items()}
    wide = data | {"vision_config": data["vision_config"] | {"intermediate_size": 4352}}
    packed = read_checkpoint(write_packed(tmp_path / "mlx", arrays, wide, None))
    assert packed.config.vision.intermediate_size == 4352
    back = Conversion(packed, to="hf")
    assert back.config.vision.intermediate_size == 4304
    found = {name: array for group in back.tensors() for name, array in group.items()}
    assert {name: tuple(array.shape) for name, array in found.items()} == expected_shapes(checkpoint.config)
    assert mx.array_equal(found[f"{FC1}.bias"], made[f"{FC1}.bias"])
    inputs = random_inputs(checkpoint.config, (5,))
    narrow = read_checkpoint(hub_folder(tmp_path / "back", data, found))
    assert relative_error(mlx_logits(load_model(narrow), inputs), mlx_logits(load_model(packed), inputs)) < 5e-6


def test_neurons_that_do_something_are_never_cut_off(tmp_path):
    data = real_widths({"num_hidden_layers": 1})
    data["vision_config"]["intermediate_size"] = 4352  # a model that was made so wide
    checkpoint = read_checkpoint(hub_folder(tmp_path, data, weights(data)))
    assert Conversion(checkpoint, to="hf").config.vision.intermediate_size == 4352


def test_a_vision_mlp_that_stays_packed_stays_wide(old):
    checkpoint, _ = old
    assert Conversion(checkpoint).config.vision.intermediate_size == PADDED


def test_quantising_again_starts_from_the_unpacked_numbers(old):
    checkpoint, numbers = old
    recipe = Recipe(8, group_size=32)
    found = converted(checkpoint, recipe=recipe, dequantize=True)
    wanted = mx.quantize(numbers[EMBEDDING].astype(mx.bfloat16), group_size=32, bits=8)
    assert all(
        mx.array_equal(found[f"{TABLE}.{part}"], array) for part, array in zip(("weight", "scales", "biases"), wanted, strict=True)
    )
    assert found[f"{FC1}.weight"].dtype == mx.bfloat16


EXCLUDED = {
    "hf and quantised": ({"to": "hf", "recipe": Recipe()}, "--quantize packs weights as MLX reads them, and --to hf"),
    "another form": ({"to": "gguf"}, "--to 'gguf' is unknown; choose mlx or hf"),
    "another dtype": ({"dtype": "float64"}, "dtype 'float64' is unknown"),
}


@pytest.mark.parametrize(("wishes", "words"), EXCLUDED.values(), ids=EXCLUDED)
def test_wishes_that_exclude_each_other_are_refused(tmp_path, wishes, words):
    with pytest.raises(OptionError) as error:
        Conversion(read_checkpoint(write(tmp_path)), **wishes)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_what_is_quantised_is_not_quantised_again_unasked(old):
    with pytest.raises(OptionError, match="is quantised already; take the original, or add --dequantize"):
        Conversion(old[0], recipe=Recipe())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [EMBEDDING, PATCHES, "language_model.norm.weight"])
def test_a_number_that_is_not_finite_is_found_where_that_is_checked(tmp_path, name, bad):
    made = tensors(tiny_config())
    made[name].view(-1)[-1] = bad
    checkpoint = read_checkpoint(write(tmp_path, made))
    assert len(converted(checkpoint)) == len(made)
    with pytest.raises(CheckpointError) as error:
        converted(checkpoint, check_finite=True)
    info = checkpoint.tensors[name]
    assert str(error.value).startswith(f"{info.file}: {info.key} holds NaN or infinite numbers")


def test_scales_that_are_not_finite_are_found_too(tmp_path):
    arrays = pack(weights(config_json(1)), text_alone(affine(4)), mx.bfloat16)
    arrays[f"{TABLE}.scales"][3, 1] = float("inf")
    checkpoint = read_checkpoint(write_packed(tmp_path, arrays, config_json(1), None))
    with pytest.raises(CheckpointError, match=r"embed_tokens\.scales holds NaN"):
        converted(checkpoint, check_finite=True)
