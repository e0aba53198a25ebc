"""What published config.json files leave out: our reading is the file that we write, and transformers computes the same from it.

tests/test_config.py holds the values; here each key is taken out of the file of a small model of random weights. Left to
itself, transformers falls for some of them: those are named.
"""

import json

import numpy as np
import pytest
import torch
from checkpoints import write

import torch_ref
from mlx_paligemma.common.checkpoint import read_checkpoint
from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.common.config_file import config_json
from mlx_paligemma.common.processor import ModelInputs
from mlx_paligemma.parity.distance import relative_error
from torch_ref import weights as torch_weights

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
transformers.utils.logging.disable_progress_bar()

LIMIT = 1e-5  # of float32 logits, as in tests/parity: only the order of summation differs
TEXT = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 8, "head_dim": 256,
        "vocab_size": 256}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
          "patch_size": 14, "model_type": "siglip_vision_model", "vision_use_head": False}  # fmt: skip
PG1 = {"model_type": "paligemma", "image_token_index": 200, "projection_dim": 32, "vision_config": VISION,
       "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": True, "torch_dtype": "float32",
       "text_config": TEXT | {"model_type": "gemma", "num_key_value_heads": 1}}  # fmt: skip
FULL = PG1 | {"image_token_index": 257152, "text_config": PG1["text_config"] | {"vocab_size": 257216}}
GEMMA2 = {"model_type": "gemma2", "num_key_value_heads": 4, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
          "query_pre_attn_scalar": 256, "sliding_window": 4096, "layer_types": ["sliding_attention", "full_attention"]}  # fmt: skip
PG2 = PG1 | {"text_config": TEXT | GEMMA2}
COMMON = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 8192, "attention_bias": False,
          "attention_dropout": 0.0, "use_bidirectional_attention": True, "hidden_act": "gelu_pytorch_tanh",
          "hidden_activation": "gelu_pytorch_tanh"}  # fmt: skip
ROWS = {  # of the table "key if absent, value to use": the file, the section, the key, the value
    "vision image_size": (PG1, "vision_config", "image_size", 224),
    "vision patch_size": (PG1, "vision_config", "patch_size", 14),
    "vision intermediate_size": (PG1, "vision_config", "intermediate_size", 4304),
    "vision hidden_size": (PG1, "vision_config", "hidden_size", 1152),
    "vision layers": (PG1, "vision_config", "num_hidden_layers", 27),
    "vision heads": (PG1, "vision_config", "num_attention_heads", 16),
    "vision layer_norm_eps": (PG1, "vision_config", "layer_norm_eps", 1e-6),
    "vision num_channels": (PG1, "vision_config", "num_channels", 3),
    "vision hidden_act": (PG1, "vision_config", "hidden_act", "gelu_pytorch_tanh"),
    "vision_use_head": (PG1, "vision_config", "vision_use_head", False),
    "projection_dim": (PG1, None, "projection_dim", 32),
    "head_dim": (PG2, "text_config", "head_dim", 256),
    "attention heads, gemma2": (PG2, "text_config", "num_attention_heads", 8),
    "attention heads, gemma": (PG1, "text_config", "num_attention_heads", 8),
    "key value heads, gemma": (PG1, "text_config", "num_key_value_heads", 1),
    "key value heads, gemma2": (PG2, "text_config", "num_key_value_heads", 4),
    "query_pre_attn_scalar": (PG2, "text_config", "query_pre_attn_scalar", 256),
    "attn_logit_softcapping": (PG2, "text_config", "attn_logit_softcapping", 50.0),
    "final_logit_softcapping": (PG2, "text_config", "final_logit_softcapping", 30.0),
    "sliding_window": (PG2, "text_config", "sliding_window", 4096),
    "layer_types": (PG2, "text_config", "layer_types", ["sliding_attention", "full_attention"]),
    "vocab_size": (FULL, "text_config", "vocab_size", 257216),
    "image_token_index": (FULL, None, "image_token_index", 257152),
    "tie_word_embeddings": (PG1, None, "tie_word_embeddings", True),
    "eos": (PG1, None, "eos_token_id", 1),
    "bos": (PG1, None, "bos_token_id", 2),
    "pad": (PG1, None, "pad_token_id", 0),
    "dtype": (PG1, None, "torch_dtype", "float32"),
} | {f"{key}, {kind}": (file, "text_config", key, value)
     for key, value in COMMON.items() for kind, file in (("gemma", PG1), ("gemma2", PG2))}  # fmt: skip
TRAPS = {"vision patch_size", "vision hidden_size", "vision layers", "vision heads", "vision intermediate_size", "vision_use_head",
         "projection_dim", "attention heads, gemma", "key value heads, gemma", "vocab_size", "image_token_index",
         "eos", "bos", "pad"}  # fmt: skip
UNREAD = {"hidden_act, gemma2", "hidden_activation, gemma"}  # by transformers' class; mlx-vlm reads them
FREE = {
    "dtype",
    "attention_dropout, gemma",
    "attention_dropout, gemma2",
    "max_position_embeddings, gemma",
    "max_position_embeddings, gemma2",
    "bos",
    "pad",
}  # no weight and no logit depends on them


def given(name: str, absent: bool = False) -> dict:
    """The file of a row, with the key or without it."""
    file, section, key, value = ROWS[name]
    data = json.loads(json.dumps(file))
    part = data if section is None else data[section]
    part[key] = value
    if absent:
        del part[key]
    return data


def written(data: dict) -> dict:
    return json.loads(json.dumps(config_json(PaliGemmaConfig.from_dict(data), "float32")))


def as_transformers_reads(data: dict) -> dict:
    return transformers.PaliGemmaConfig.from_dict(data | {"dtype": "float32"}).to_dict()


@pytest.mark.parametrize("name", ROWS)
def test_a_file_without_the_key_is_written_as_the_one_with_it(name):
    assert written(given(name, absent=True)) == written(given(name))


@pytest.mark.parametrize("name", [name for name in ROWS if name not in UNREAD])
def test_transformers_alone_falls_for_the_traps_and_for_nothing_else(name):
    """Of released models every other key may be left out; these are wrong, or None, in transformers' own classes."""
    try:
        alone = as_transformers_reads(given(name, absent=True))
    except ValueError:  # sizes that do not fit together
        alone = {}
    assert (alone != as_transformers_reads(given(name))) == (name in TRAPS)


def pictures_and_text(config: PaliGemmaConfig) -> ModelInputs:
    rng = np.random.default_rng(0)
    size, patches = config.vision.image_size, config.vision.num_patches
    ids = np.array([[config.image_token_index] * patches + [2, 5, 77, 108, 9]], dtype=np.int32)
    pixels = rng.uniform(-1, 1, (1, 1, size, size, config.vision.num_channels)).astype(np.float32)
    return ModelInputs(ids, pixels, prefix_length=np.array([patches + 4], dtype=np.int32))


@pytest.mark.parametrize("name", [name for name in ROWS if name not in FREE])
def test_transformers_computes_from_the_written_file_what_we_compute_from_the_one_without_the_key(name, tmp_path):
    data = given(name, absent=True)
    folder = write(tmp_path, data=data)
    checkpoint = read_checkpoint(folder)
    inputs = pictures_and_text(checkpoint.config)
    reference = torch_weights.load_model(checkpoint)
    (folder / "config.json").write_text(json.dumps(written(data)))
    theirs = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        ours = reference(**torch_ref.as_torch(inputs, "cpu")).numpy()
        expected = theirs.eval()(
            input_ids=torch.from_numpy(inputs.input_ids).long(),
            pixel_values=torch.from_numpy(inputs.pixel_values[:, 0].transpose(0, 3, 1, 2).copy()),
            attention_mask=torch.from_numpy(inputs.attention_mask),
            token_type_ids=torch.from_numpy(inputs.token_type_ids),
        ).logits.numpy()
    assert expected.std() > 0.2, "logits so small would hide a difference"
    assert relative_error(ours, expected) <= LIMIT


def test_a_28b_model_has_the_two_values_that_are_not_the_class_s():
    data = json.loads(json.dumps(PG2))
    data["text_config"] |= {"hidden_size": 4608, "num_attention_heads": 32, "num_key_value_heads": 16}
    data.pop("projection_dim")
    for key in ("head_dim", "query_pre_attn_scalar"):
        data["text_config"].pop(key)
    theirs = transformers.PaliGemmaConfig.from_dict(written(data))
    assert (theirs.text_config.head_dim, theirs.text_config.query_pre_attn_scalar) == (128, 144)
    assert (transformers.PaliGemmaConfig.from_dict(data).text_config.head_dim, theirs.projection_dim) == (256, 4608)
