"""Recipes: which module gets which packing, what config.json says about it, and which wishes are refused."""

import json

import mlx.nn as nn
import pytest
from packed_checkpoints import OWN_HEAD, TABLE, config_json

from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.common.errors import OptionError
from mlx_paligemma.common.packed import FLOAT_MODES, Packing
from mlx_paligemma.common.tensors import POSITIONS, expected_shapes
from mlx_paligemma.published import published_config
from mlx_paligemma.quantization import BITS, MIXED, Recipe, padded, plan, quantization_block

CONFIG = PaliGemmaConfig.from_dict(config_json(2))
OWN = PaliGemmaConfig.from_dict(config_json(1) | {"tie_word_embeddings": False})
REAL = [published_config(size, 224) for size in ("pg1-3b", "pg2-3b", "pg2-10b", "pg2-28b")]
LINEARS = [name.removesuffix(".weight") for name, shape in expected_shapes(CONFIG).items()
           if name.startswith("language_model.layers.") and len(shape) == 2]  # fmt: skip


def test_by_default_the_text_layers_get_4_bits_the_table_8_and_vision_none():
    assert plan(CONFIG, Recipe()) == {TABLE: Packing(8, 64)} | dict.fromkeys(LINEARS, Packing(4, 64))


def test_a_head_of_its_own_is_spared_like_the_table():
    planned = plan(OWN, Recipe(bits=3, embedding_bits=6))
    assert planned[OWN_HEAD] == planned[TABLE] == Packing(6, 64)
    assert planned["language_model.layers.0.mlp.up_proj"] == Packing(3, 64)


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("bits", BITS)
def test_bits_and_groups_are_those_asked_for(bits, group_size):
    planned = plan(CONFIG, Recipe(bits=bits, group_size=group_size, embedding_bits=bits))
    assert set(planned.values()) == {Packing(bits, group_size)} and set(planned) == {TABLE, *LINEARS}


@pytest.mark.parametrize(("mode", "form"), FLOAT_MODES.items())
def test_a_mode_of_small_floats_says_bits_and_groups_and_the_table_stays_affine(mode, form):
    planned = plan(CONFIG, Recipe(mode=mode))
    assert planned.pop(TABLE) == Packing(8, 64)
    assert planned == dict.fromkeys(LINEARS, Packing(*form, mode))


def test_with_vision_everything_but_the_positions_and_the_patch_kernel_is_packed():
    config = padded(CONFIG)
    planned = plan(config, Recipe(vision=True))
    matrices = {name.removesuffix(".weight") for name, shape in expected_shapes(config).items() if len(shape) == 2}
    assert planned.keys() == matrices - {POSITIONS}
    assert {planned[name] for name in planned if not name.startswith("language_model.")} == {Packing(4, 64)}


def test_columns_that_no_group_fills_are_left_as_they_are():
    assert "vision_tower.encoder.layers.0.mlp.fc2" not in plan(CONFIG, Recipe(vision=True))  # 100 columns
    narrow = PaliGemmaConfig.from_dict(config_json(1, {"hidden_size": 96}))
    assert "vision_tower.encoder.layers.0.mlp.fc1" not in plan(narrow, Recipe(vision=True))
    assert "vision_tower.encoder.layers.0.mlp.fc1" in plan(narrow, Recipe(vision=True, group_size=32))


def test_the_table_takes_smaller_groups_where_its_columns_need_them():
    data = config_json(1)
    text = data["text_config"] | {"hidden_size": 96}
    narrow = PaliGemmaConfig.from_dict(data | {"text_config": text, "projection_dim": 96})
    assert plan(narrow, Recipe())[TABLE] == Packing(8, 32)
    assert plan(narrow, Recipe(group_size=128))[TABLE] == Packing(8, 32)


def test_a_model_of_which_nothing_can_be_packed_is_refused():
    data = config_json(1)
    text = data["text_config"] | {"hidden_size": 40, "intermediate_size": 72, "head_dim": 9}
    with pytest.raises(OptionError, match="no layer of this model can be quantised: groups of 64 fill the columns of none"):
        plan(PaliGemmaConfig.from_dict(data | {"text_config": text, "projection_dim": 40}), Recipe())


@pytest.mark.parametrize("mixed", MIXED)
def test_a_mixed_recipe_chooses_the_layers_that_mlx_lm_chooses(mixed):
    """mlx_lm.convert.mixed_quant_predicate_builder, 0.32: its rule is written out here once more."""
    low, high = (int(bits) for bits in mixed.split("_")[1:])
    config = REAL[1]
    layers = config.text.num_hidden_layers
    planned = plan(config, Recipe(mixed=mixed))
    for index in range(layers):
        more = index < layers // 8 or index >= 7 * layers // 8 or (index - layers // 8) % 3 == 2
        for name in ("self_attn.v_proj", "mlp.down_proj"):
            assert planned[f"language_model.layers.{index}.{name}"].bits == (high if more else low)
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj"):
            assert planned[f"language_model.layers.{index}.{name}"].bits == low
    assert planned[TABLE].bits == 8


@pytest.mark.parametrize("config", REAL, ids=lambda config: str(config.text.hidden_size))
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_every_matrix_of_the_released_models_can_be_packed_in_every_group_once_the_vision_mlp_is_padded(config, group_size):
    wide = padded(config)
    assert (config.vision.intermediate_size, wide.vision.intermediate_size) == (4304, 4352)
    planned = plan(wide, Recipe(group_size=group_size, vision=True))
    matrices = {name.removesuffix(".weight") for name, shape in expected_shapes(wide).items() if len(shape) == 2}
    assert planned.keys() == matrices - {POSITIONS}


def test_padding_leaves_a_width_that_groups_fill():
    wide = padded(CONFIG)
    assert wide.vision.intermediate_size == 128
    assert padded(wide) == wide


REFUSED = {
    "2 bits": ({"bits": 2}, "--q-bits is 2; in mode affine it can be 3, 4, 5, 6, 8"),
    "7 bits": ({"bits": 7}, "--q-bits is 7"),
    "0 bits": ({"bits": 0}, "--q-bits is 0"),
    "groups of 16": ({"group_size": 16}, "--q-group-size is 16; in mode affine it can be 32, 64, 128"),
    "groups of 0": ({"group_size": 0}, "--q-group-size is 0"),
    "8 bits of mxfp4": ({"mode": "mxfp4", "bits": 8}, "--q-bits is 8; in mode mxfp4 it can be 4"),
    "nvfp4 by 64": ({"mode": "nvfp4", "group_size": 64}, "--q-group-size is 64; in mode nvfp4 it can be 16"),
    "no mode": ({"mode": "int4"}, "--q-mode 'int4' is unknown; choose one of affine, mxfp4, mxfp8, nvfp4"),
    "no mixture": ({"mixed": "mixed_1_2"}, "--quant-predicate 'mixed_1_2' is unknown"),
    "mixed with bits": ({"mixed": "mixed_3_6", "bits": 4}, "says the bits itself"),
    "mixed with a mode": ({"mixed": "mixed_3_6", "mode": "mxfp4"}, "says the bits itself"),
    "table of 2 bits": ({"embedding_bits": 2}, "--q-embedding-bits is 2"),
    "table of 0 bits": ({"embedding_bits": 0}, "--q-embedding-bits is 0"),
}


@pytest.mark.parametrize(("wishes", "words"), REFUSED.values(), ids=REFUSED)
def test_a_wish_out_of_range_is_refused_in_one_line(wishes, words):
    with pytest.raises(OptionError) as error:
        Recipe(**wishes)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("mode", "form"), FLOAT_MODES.items())
def test_saying_what_the_mode_says_already_is_no_error(mode, form):
    bits, group_size = form
    assert Recipe(bits, group_size, mode).packing == Recipe(mode=mode).packing


def test_recipes_have_names_for_tables():
    names = [Recipe(), Recipe(8, 32), Recipe(mode="nvfp4"), Recipe(mixed="mixed_3_6"), Recipe(embedding_bits=4, vision=True)]
    assert [recipe.name for recipe in names] == [
        "4-bit, groups of 64", "8-bit, groups of 32", "nvfp4, groups of 16", "mixed_3_6, groups of 64",
        "4-bit, groups of 64, table 4-bit, vision too",
    ]  # fmt: skip


def test_config_json_gets_the_commonest_form_and_by_name_what_differs():
    block = quantization_block(plan(OWN, Recipe(mixed="mixed_4_6")))
    assert json.loads(json.dumps(block)) == block
    assert {key: block.pop(key) for key in ("group_size", "bits", "mode")} == {"group_size": 64, "bits": 4, "mode": "affine"}
    eight = {"group_size": 64, "bits": 8, "mode": "affine"}
    assert block.pop(TABLE) == block.pop(OWN_HEAD) == eight
    assert block and all(name.endswith(("v_proj", "down_proj")) and form["bits"] == 6 for name, form in block.items())


def test_mlx_builds_from_the_block_the_modules_that_were_planned():
    """As mlx-lm and mlx-vlm read it: nn.quantize with a predicate by path."""
    planned = plan(CONFIG, Recipe(mixed="mixed_3_8", group_size=32))
    block = quantization_block(planned)
    shapes = expected_shapes(CONFIG)
    for name, packing in planned.items():
        form = block.get(name) or {key: block[key] for key in ("group_size", "bits", "mode")}
        rows, width = shapes[f"{name}.weight"]
        module = nn.QuantizedLinear(width, rows, False, **form)
        assert (module.bits, module.group_size, module.mode) == (packing.bits, packing.group_size, packing.mode)
