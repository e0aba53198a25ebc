"""A config.json means what the released checkpoints mean by it, whatever it leaves out, and a wrong one is named in one line.

The files are those of the hub: the keys that the published ones hold, and no others.
"""

import json
import os
from dataclasses import fields
from pathlib import Path

import pytest

from mlx_paligemma.common.config import GemmaConfig, PaliGemmaConfig, SiglipConfig
from mlx_paligemma.common.errors import CheckpointError


def pg1(**changes) -> dict:
    """PaliGemma 1 3B, 224 pixels, as published."""
    text = {"hidden_size": 2048, "intermediate_size": 16384, "model_type": "gemma", "num_attention_heads": 8,
            "num_hidden_layers": 18, "num_image_tokens": 256, "num_key_value_heads": 1, "torch_dtype": "float32",
            "vocab_size": 257216}  # fmt: skip
    vision = {"hidden_size": 1152, "intermediate_size": 4304, "model_type": "siglip_vision_model", "num_attention_heads": 16,
              "num_hidden_layers": 27, "num_image_tokens": 256, "patch_size": 14, "projection_dim": 2048,
              "projector_hidden_act": "gelu_fast", "vision_use_head": False}  # fmt: skip
    top = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "hidden_size": 2048, "ignore_index": -100,
           "image_token_index": 257152, "projection_dim": 2048, "model_type": "paligemma", "torch_dtype": "float32",
           "vocab_size": 257216}  # fmt: skip
    return changed(top | {"text_config": text, "vision_config": vision}, changes)


def pg2(**changes) -> dict:
    """PaliGemma 2 3B, 224 pixels, as published: neither attention heads nor head size."""
    text = {"architectures": ["Gemma2ForCausalLM"], "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid",
            "eos_token_id": [1, 107], "final_logit_softcapping": 30.0, "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "intermediate_size": 9216, "model_type": "gemma2",
            "num_hidden_layers": 26, "num_image_tokens": 256, "num_key_value_heads": 4, "query_pre_attn_scalar": 256,
            "sliding_window": 4096, "torch_dtype": "bfloat16", "vocab_size": 257216}  # fmt: skip
    top = {"num_hidden_layers": 26, "projection_dim": 2304, "hidden_size": 2048, "torch_dtype": "bfloat16"}
    return changed(pg1() | top | {"text_config": text}, changes)


def pg2_28b(**changes) -> dict:
    """PaliGemma 2 28B, with the two values that the converter must write."""
    text = {"hidden_size": 4608, "intermediate_size": 36864, "num_hidden_layers": 46, "num_attention_heads": 32,
            "num_key_value_heads": 16, "head_dim": 128, "query_pre_attn_scalar": 144}  # fmt: skip
    return changed(pg2(projection_dim=4608, **{f"text_config.{key}": value for key, value in text.items()}), changes)


ABSENT = object()


def changed(data: dict, changes: dict) -> dict:
    """`data` with the values at dotted paths replaced, or removed."""
    for path, value in changes.items():
        *section, key = path.split(".")
        target = data[section[0]] if section else data
        target.pop(key, None)
        if value is not ABSENT:
            target[key] = value
    return data


def read(data: dict, path: str):
    """The value at a dotted path of the config that `data` gives."""
    config = PaliGemmaConfig.from_dict(data)
    for name in path.split("."):
        config = getattr(config, name)
    return config


DEFAULTS = [  # file, keys left out, path in our config, value that must be there
    ("vision image_size", pg1, ["vision_config.image_size"], "vision.image_size", 224),
    ("vision patch_size", pg1, ["vision_config.patch_size"], "vision.patch_size", 14),
    ("vision intermediate_size", pg1, ["vision_config.intermediate_size"], "vision.intermediate_size", 4304),
    ("vision hidden_size", pg1, ["vision_config.hidden_size"], "vision.hidden_size", 1152),
    ("vision layers", pg1, ["vision_config.num_hidden_layers"], "vision.num_hidden_layers", 27),
    ("vision heads", pg1, ["vision_config.num_attention_heads"], "vision.num_attention_heads", 16),
    ("vision layer_norm_eps", pg1, ["vision_config.layer_norm_eps"], "vision.layer_norm_eps", 1e-6),
    ("vision num_channels", pg1, ["vision_config.num_channels"], "vision.num_channels", 3),
    ("vision_use_head", pg1, ["vision_config.vision_use_head"], "vision", SiglipConfig()),
    ("vision hidden_act", pg1, ["vision_config.hidden_act"], "vision", SiglipConfig()),
    ("projection_dim pg1", pg1, ["projection_dim"], "projection_dim", 2048),
    ("projection_dim pg2", pg2, ["projection_dim"], "projection_dim", 2304),
    ("head_dim pg1", pg1, ["text_config.head_dim"], "text.head_dim", 256),
    ("head_dim pg2", pg2, ["text_config.head_dim"], "text.head_dim", 256),
    ("head_dim 28B", pg2_28b, ["text_config.head_dim"], "text.head_dim", 128),
    ("attention heads pg2", pg2, ["text_config.num_attention_heads"], "text.num_attention_heads", 8),
    ("attention heads pg1", pg1, ["text_config.num_attention_heads"], "text.num_attention_heads", 8),
    ("key value heads pg1", pg1, ["text_config.num_key_value_heads"], "text.num_key_value_heads", 1),
    ("key value heads pg2", pg2, ["text_config.num_key_value_heads"], "text.num_key_value_heads", 4),
    ("rms_norm_eps", pg2, ["text_config.rms_norm_eps"], "text.rms_norm_eps", 1e-6),
    ("rope_theta", pg2, ["text_config.rope_theta"], "text.rope_theta", 10000),
    ("max_position_embeddings", pg2, ["text_config.max_position_embeddings"], "text.max_position_embeddings", 8192),
    ("attention_bias", pg2, ["text_config.attention_bias", "text_config.attention_dropout"], "text.hidden_size", 2304),
    ("hidden_act", pg2, ["text_config.hidden_act", "text_config.hidden_activation"], "text.hidden_size", 2304),
    ("query_pre_attn_scalar", pg2, ["text_config.query_pre_attn_scalar"], "text.query_pre_attn_scalar", 256),
    ("query_pre_attn_scalar 28B", pg2_28b, ["text_config.query_pre_attn_scalar"], "text.query_pre_attn_scalar", 144),
    ("attn_logit_softcapping", pg2, ["text_config.attn_logit_softcapping"], "text.attn_logit_softcapping", 50),
    ("final_logit_softcapping", pg2, ["text_config.final_logit_softcapping"], "text.final_logit_softcapping", 30),
    ("sliding_window", pg2, ["text_config.sliding_window"], "text.sliding_window", 4096),
    ("attn_logit_softcapping pg1", pg1, [], "text.attn_logit_softcapping", None),
    ("final_logit_softcapping pg1", pg1, [], "text.final_logit_softcapping", None),
    ("sliding_window pg1", pg1, [], "text.sliding_window", None),
    ("layer_types", pg2, ["text_config.layer_types"], "text.layer_types", ("sliding_attention", "full_attention") * 13),
    ("layer_types pg1", pg1, [], "text.layer_types", ("full_attention",) * 18),
    ("use_bidirectional_attention", pg2, ["text_config.use_bidirectional_attention"], "text.hidden_size", 2304),
    ("image_token_index", pg1, ["image_token_index"], "image_token_index", 257152),
    ("tie_word_embeddings", pg1, ["tie_word_embeddings"], "tie_word_embeddings", True),
    ("eos", pg1, ["eos_token_id"], "eos_token_id", 1),
    ("bos", pg1, ["bos_token_id"], "bos_token_id", 2),
    ("pad", pg1, ["pad_token_id"], "pad_token_id", 0),
    ("dtype", pg1, ["dtype", "torch_dtype"], "dtype", None),
    ("vocab_size", pg2, ["text_config.vocab_size"], "text.vocab_size", 257216),
    ("model_type of the text", pg1, ["text_config.model_type"], "text.model_type", "gemma"),
    ("whole vision_config", pg1, ["vision_config"], "vision", SiglipConfig()),
]


@pytest.mark.parametrize(("data", "left_out", "path", "value"), [row[1:] for row in DEFAULTS], ids=[row[0] for row in DEFAULTS])
def test_what_a_file_leaves_out_has_the_value_of_the_released_weights(data, left_out, path, value):
    assert read(data(**dict.fromkeys(left_out, ABSENT)), path) == value
    null_is_a_value = any("softcapping" in key or "sliding_window" in key for key in left_out)
    assert read(data(**dict.fromkeys(left_out)), path) == (None if null_is_a_value else value)


GIVEN = [  # file, changes, path in our config, value that must be there
    ("image size 448", pg1, {"vision_config.image_size": 448}, "vision.num_patches", 1024),
    ("image size 896", pg2, {"vision_config.image_size": 896}, "vision.num_patches", 4096),
    ("padded vision MLP of mlx-community", pg1, {"vision_config.intermediate_size": 4352}, "vision.intermediate_size", 4352),
    ("vision activation by another name", pg1, {"vision_config.hidden_act": "gelu_fast"}, "vision", SiglipConfig()),
    ("text activation gelu", pg1, {"text_config.hidden_act": "gelu"}, "text.hidden_size", 2048),
    ("top-level hidden_size of pg2", pg2, {}, "text.hidden_size", 2304),
    ("top-level hidden_size of pg2, projection", pg2, {}, "projection_dim", 2304),
    ("num_positions", pg2, {"vision_config.num_positions": 4096}, "vision.num_patches", 256),
    ("num_image_tokens", pg2, {"vision_config.num_image_tokens": 1024, "text_config.num_image_tokens": 1024},
     "vision.num_patches", 256),
    ("eos list of the text model", pg2, {"text_config.eos_token_id": [107, 1]}, "eos_token_id", 1),
    ("eos list", pg2, {"eos_token_id": [1, 107]}, "eos_token_id", 1),
    ("image_token_id", pg1, {"image_token_index": ABSENT, "image_token_id": 7}, "image_token_index", 7),
    ("pad 0", pg1, {"pad_token_id": 0}, "pad_token_id", 0),
    ("rope_parameters", pg2, {"text_config.rope_parameters": {"rope_theta": 5e4, "rope_type": "default"}}, "text.rope_theta", 5e4),
    ("rope_theta", pg2, {"text_config.rope_theta": 5e4}, "text.rope_theta", 5e4),
    ("torch_dtype", pg2, {}, "dtype", "bfloat16"),
    ("dtype", pg2, {"dtype": "float16", "torch_dtype": ABSENT}, "dtype", "float16"),
    ("head size beside 16 heads", pg2, {"text_config.num_attention_heads": 16}, "text.head_dim", 256),
    ("28B head size", pg2_28b, {}, "text.head_dim", 128),
    ("28B heads", pg2_28b, {}, "text.num_attention_heads", 32),
    ("28B query scale", pg2_28b, {}, "text.query_scale", 144**-0.5),
    ("3B query scale", pg2, {}, "text.query_scale", 256**-0.5),
    ("pg1 query scale", pg1, {}, "text.query_scale", 256**-0.5),
    ("pg1 query scale follows the head size", pg1, {"text_config.head_dim": 64}, "text.query_scale", 64**-0.5),
    ("pg1 has no cap", pg1, {"text_config.attn_logit_softcapping": 50.0}, "text.attn_logit_softcapping", None),
    ("pg1 has no final cap", pg1, {"text_config.final_logit_softcapping": 30.0}, "text.final_logit_softcapping", None),
    ("pg1 has no window", pg1, {"text_config.sliding_window": 4096}, "text.sliding_window", None),
    ("pg1 layers all see everything", pg1, {"text_config.layer_types": ["sliding_attention"] * 18}, "text.layer_types",
     ("full_attention",) * 18),
    ("given layer_types", pg2, {"text_config.layer_types": ["full_attention"] * 26}, "text.layer_types", ("full_attention",) * 26),
    ("untied head", pg1, {"tie_word_embeddings": False}, "tie_word_embeddings", False),
    ("untied head in the text", pg1, {"text_config.tie_word_embeddings": False}, "tie_word_embeddings", False),
    ("unknown keys", pg1, {"text_config.skip_vision": True, "quantization": {"bits": 4}, "_vocab_size": 1},
     "text.vocab_size", 257216),
]  # fmt: skip


@pytest.mark.parametrize(("data", "changes", "path", "value"), [row[1:] for row in GIVEN], ids=[row[0] for row in GIVEN])
def test_what_a_file_says_is_read_as_the_released_models_mean_it(data, changes, path, value):
    assert read(data(**changes), path) == value


def test_the_first_layer_slides_and_the_second_does_not():
    assert read(pg2(), "text.layer_types")[:3] == ("sliding_attention", "full_attention", "sliding_attention")


LONGEST_MESSAGE = 250  # characters
WRONG = [  # file, changes, words of the message
    ("other model", pg1, {"model_type": "llava"}, "'llava'"),
    ("no model_type", pg1, {"model_type": ABSENT}, "model_type is None"),
    ("no text_config", pg1, {"text_config": ABSENT}, "text_config"),
    ("text_config null", pg1, {"text_config": None}, "text_config"),
    ("text_config a list", pg1, {"text_config": [1]}, "text_config"),
    ("vision_config a list", pg1, {"vision_config": [1]}, "vision_config"),
    ("text model unknown", pg1, {"text_config.model_type": "llama"}, "'llama'"),
    ("text model no string", pg1, {"text_config.model_type": ["gemma"]}, "['gemma']"),
    ("no hidden_size", pg1, {"text_config.hidden_size": ABSENT}, "no hidden_size"),
    ("hidden_size null", pg1, {"text_config.hidden_size": None}, "no hidden_size"),
    ("no intermediate_size", pg2, {"text_config.intermediate_size": ABSENT}, "no intermediate_size"),
    ("no layers", pg2, {"text_config.num_hidden_layers": ABSENT}, "no num_hidden_layers"),
    ("layers a string", pg1, {"text_config.num_hidden_layers": "18"}, "num_hidden_layers is '18'"),
    ("layers a fraction", pg1, {"text_config.num_hidden_layers": 18.5}, "num_hidden_layers is 18.5"),
    ("layers true", pg1, {"text_config.num_hidden_layers": True}, "num_hidden_layers is True"),
    ("layers zero", pg2, {"text_config.num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ("layers negative", pg2, {"text_config.num_hidden_layers": -3}, "num_hidden_layers is -3"),
    ("heads zero", pg1, {"text_config.num_key_value_heads": 0}, "num_key_value_heads is 0"),
    ("head size a string", pg1, {"text_config.head_dim": "256"}, "head_dim is '256'"),
    ("head size zero", pg2, {"text_config.head_dim": 0}, "head_dim is 0"),
    ("vocabulary a list", pg1, {"text_config.vocab_size": [1]}, "vocab_size is [1]"),
    ("eps a string", pg1, {"text_config.rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6'"),
    ("eps NaN", pg1, {"text_config.rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ("cap infinite", pg2, {"text_config.attn_logit_softcapping": float("inf")}, "attn_logit_softcapping is inf"),
    ("query scalar an object", pg2, {"text_config.query_pre_attn_scalar": {}}, "query_pre_attn_scalar is {}"),
    ("window a fraction", pg2, {"text_config.sliding_window": 0.5}, "sliding_window is 0.5"),
    ("heads do not divide", pg2, {"text_config.num_key_value_heads": 3}, "multiple of num_key_value_heads"),
    ("attention bias", pg1, {"text_config.attention_bias": True}, "attention_bias"),
    ("causal prefix", pg1, {"text_config.use_bidirectional_attention": False}, "use_bidirectional_attention"),
    ("scaled rotary positions", pg2, {"text_config.rope_parameters": {"rope_type": "linear", "factor": 2}}, "rotary"),
    ("rope_scaling", pg2, {"text_config.rope_scaling": {"type": "linear"}}, "rotary"),
    ("rope_parameters a list", pg2, {"text_config.rope_parameters": [1]}, "rotary"),
    ("rope_theta a string", pg2, {"text_config.rope_theta": "many"}, "rope_theta is 'many'"),
    ("layer_types short", pg2, {"text_config.layer_types": ["full_attention"]}, "layer_types"),
    ("layer_types a number", pg2, {"text_config.layer_types": 26}, "layer_types"),
    ("layer_types unknown", pg2, {"text_config.layer_types": ["linear_attention"] * 26}, "layer_types"),
    ("projection of another width", pg2, {"projection_dim": 2048}, "projection_dim 2048"),
    ("projection a string", pg2, {"projection_dim": "2304\n"}, "projection_dim '2304"),
    ("eos an empty list", pg1, {"eos_token_id": []}, "eos_token_id is []"),
    ("eos a string", pg1, {"eos_token_id": "<eos>"}, "eos_token_id is '<eos>'"),
    ("image token true", pg1, {"image_token_index": True}, "image_token_index is True"),
    ("image token negative", pg1, {"image_token_index": -1}, "image_token_index is -1"),
    ("vision head", pg1, {"vision_config.vision_use_head": True}, "vision_use_head"),
    ("vision activation", pg1, {"vision_config.hidden_act": "quick_gelu"}, "'quick_gelu'"),
    ("vision width a string", pg1, {"vision_config.hidden_size": "1152"}, "hidden_size is '1152'"),
    ("vision heads do not divide", pg1, {"vision_config.num_attention_heads": 7}, "multiple of its num_attention_heads"),
    ("patches do not fit", pg1, {"vision_config.patch_size": 16, "vision_config.image_size": 250}, "multiple of its patch_size"),
    ("image size a list", pg1, {"vision_config.image_size": [224, 224]}, "image_size is [224, 224]"),
    ("layers without end", pg1, {"text_config.num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    ("vision layers without end", pg1, {"vision_config.num_hidden_layers": 1000}, "num_hidden_layers is 1000; it must be"),
    ("rope_theta beyond floats", pg1, {"text_config.rope_theta": 10**400}, "rope_theta is 1000"),
    ("eps beyond floats", pg1, {"text_config.rms_norm_eps": 10**4000}, "rms_norm_eps is 1000"),
    ("image token without end", pg1, {"image_token_index": 10**4000}, "image_token_index is 1000"),
    ("a model_type without end", pg1, {"model_type": "x" * 10**6}, "model_type is 'xxx"),
    ("a deep model_type", pg1, {"text_config.model_type": json.loads("[" * 900 + "]" * 900)}, "model_type [[["),
]


@pytest.mark.parametrize(("data", "changes", "words"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_a_wrong_file_gives_one_line_that_names_folder_and_value(data, changes, words, tmp_path):
    with pytest.raises(CheckpointError) as direct:
        PaliGemmaConfig.from_dict(data(**changes))
    (tmp_path / "config.json").write_text(json.dumps(data(**changes)))
    with pytest.raises(CheckpointError) as from_folder:
        PaliGemmaConfig.from_folder(tmp_path)
    assert words in str(direct.value)
    assert str(from_folder.value) == f"{tmp_path}: {direct.value}"
    assert str(direct.value).isprintable() and len(str(direct.value)) < LONGEST_MESSAGE


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "has no config.json"),
        (b"", "cannot be read as JSON"),
        (b'{"model_type": "palig', "cannot be read as JSON"),
        (b"\xff\xfe\x00", "cannot be read as JSON"),
        (b"[1, 2]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
    ],
    ids=["missing", "empty", "cut short", "not text", "a list", "null", "nested without end", "number without end"],
)
def test_an_unreadable_file_gives_one_line_that_names_the_folder(content, words, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        PaliGemmaConfig.from_folder(tmp_path)
    assert words in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert str(caught.value).isprintable()
    assert caught.value.__context__ is None or caught.value.__suppress_context__, "a traceback would show the inner error too"


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path)], ids=["a folder", "a pipe", "a loop"])
def test_what_is_no_file_in_its_place_gives_one_line(tmp_path, make):
    make(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="cannot be read"):
        PaliGemmaConfig.from_folder(tmp_path)


def test_a_file_larger_than_any_config_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "config.json").touch()
    os.truncate(tmp_path / "config.json", 10**9)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: pytest.fail("it is read"))
    with pytest.raises(CheckpointError, match="a very large one"):
        PaliGemmaConfig.from_folder(tmp_path)


def test_a_file_and_its_content_give_the_same_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(pg2_28b()))
    assert PaliGemmaConfig.from_folder(tmp_path) == PaliGemmaConfig.from_dict(pg2_28b())


@pytest.mark.parametrize("cls", [SiglipConfig, GemmaConfig, PaliGemmaConfig])
def test_a_config_cannot_be_changed_after_reading(cls):
    config = PaliGemmaConfig.from_dict(pg2())
    config = {SiglipConfig: config.vision, GemmaConfig: config.text, PaliGemmaConfig: config}[cls]
    for field in fields(cls):
        with pytest.raises(AttributeError):
            setattr(config, field.name, None)
