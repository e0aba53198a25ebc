"""A config.json that is written says everything, and every program that reads PaliGemma reads the same from it."""

import copy
import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_paligemma.common.config import LAYER_TYPES, GemmaConfig, PaliGemmaConfig, SiglipConfig
from mlx_paligemma.common.config_file import config_json
from mlx_paligemma.published import Size, published_config

RESOLUTIONS = (224, 448, 896)
PUBLISHED = [published_config(size, resolution) for size in Size for resolution in RESOLUTIONS]
NAMES = [f"{size} at {resolution}" for size in Size for resolution in RESOLUTIONS]


def positive(most: float) -> st.SearchStrategy[float]:
    return st.floats(1e-9, most, allow_nan=False) | st.integers(1, int(most))


@st.composite
def text_configs(draw) -> GemmaConfig:
    kind, layers, head_dim = draw(st.sampled_from(["gemma", "gemma2"])), draw(st.integers(1, 60)), draw(st.integers(1, 512))
    heads, groups = draw(st.integers(1, 64)), draw(st.integers(1, 8))
    only_gemma2 = {
        "query_pre_attn_scalar": draw(positive(1e4)),
        "attn_logit_softcapping": draw(st.none() | positive(1e3)),
        "final_logit_softcapping": draw(st.none() | positive(1e3)),
        "sliding_window": draw(st.none() | st.integers(1, 10**5)),
        "layer_types": tuple(draw(st.lists(st.sampled_from(LAYER_TYPES), min_size=layers, max_size=layers))),
    }
    fixed = {"query_pre_attn_scalar": head_dim, "layer_types": ("full_attention",) * layers}
    return GemmaConfig(
        hidden_size=draw(st.integers(1, 10**4)), intermediate_size=draw(st.integers(1, 10**5)), num_hidden_layers=layers,
        model_type=kind, num_attention_heads=heads * groups, num_key_value_heads=heads, head_dim=head_dim,
        vocab_size=draw(st.integers(1, 10**6)), max_position_embeddings=draw(st.integers(1, 10**6)),
        rms_norm_eps=draw(positive(1)), rope_theta=draw(positive(1e7)), **(only_gemma2 if kind == "gemma2" else fixed),
    )  # fmt: skip


@st.composite
def vision_configs(draw) -> SiglipConfig:
    heads, patch = draw(st.integers(1, 32)), draw(st.integers(1, 32))
    return SiglipConfig(
        hidden_size=heads * draw(st.integers(1, 128)), intermediate_size=draw(st.integers(1, 10**5)),
        num_hidden_layers=draw(st.integers(1, 60)), num_attention_heads=heads, num_channels=draw(st.integers(1, 4)),
        image_size=patch * draw(st.integers(1, 64)), patch_size=patch, layer_norm_eps=draw(positive(1)),
    )  # fmt: skip


@st.composite
def configs(draw) -> PaliGemmaConfig:
    text, ids = draw(text_configs()), [draw(st.integers(0, 10**6)) for _ in range(4)]
    return PaliGemmaConfig(
        text, draw(vision_configs()), text.hidden_size, *ids, draw(st.booleans()), draw(st.none() | st.just("float16"))
    )


def through_a_file(data: dict) -> dict:
    return json.loads(json.dumps(data, allow_nan=False))


@pytest.mark.parametrize("config", PUBLISHED, ids=NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_released_model_is_read_back_as_it_was(config, dtype):
    assert PaliGemmaConfig.from_dict(through_a_file(config_json(config, dtype))) == replace(config, dtype=dtype)


@given(config=configs())
def test_any_model_is_read_back_as_it_was(config):
    data = through_a_file(config_json(config, "bfloat16"))
    assert PaliGemmaConfig.from_dict(data) == replace(config, dtype="bfloat16")
    assert through_a_file(config_json(config, "bfloat16", data)) == data


@given(config=configs(), other=configs())
def test_what_a_source_says_of_another_model_changes_nothing(config, other):
    source = through_a_file(config_json(other, "float32"))
    assert through_a_file(config_json(config, "bfloat16", source)) == through_a_file(config_json(config, "bfloat16"))


def test_a_source_s_further_keys_are_kept_in_every_section():
    config = published_config("pg2-3b")
    source = {"_name_or_path": "x", "custom": {"a": [1]}, "text_config": {"cache_implementation": "hybrid"},
              "vision_config": {"projector_hidden_act": "gelu_fast"}}  # fmt: skip
    before = copy.deepcopy(source)
    data = config_json(config, "bfloat16", source)
    assert source == before
    assert (data["_name_or_path"], data["custom"]) == ("x", {"a": [1]})
    assert data["text_config"]["cache_implementation"] == "hybrid"
    assert data["vision_config"]["projector_hidden_act"] == "gelu_fast"
    assert PaliGemmaConfig.from_dict(data) == replace(config, dtype="bfloat16")


def test_what_a_source_says_of_its_own_weights_is_not_kept():
    packed = {"quantization": {"bits": 4}, "quantization_config": {"bits": 4}, "auto_map": {"AutoModel": "x.Y"}}
    source = packed | {"torch_dtype": "float32", "eos_token_id": [1, 107], "hidden_size": 2048,
                       "text_config": packed | {"torch_dtype": "float32", "eos_token_id": [1, 107], "sliding_window": 4096,
                                                "rope_scaling": None, "hidden_act": "gelu", "final_logit_softcapping": 30.0},
                       "vision_config": packed | {"num_positions": 256, "skip_vision": True, "dtype": "float32"}}  # fmt: skip
    for size in ("pg1-3b", "pg2-10b"):
        config = published_config(size, 448)
        assert config_json(config, "bfloat16", source) == config_json(config, "bfloat16")


@pytest.mark.parametrize("source", [None, {}, {"text_config": None, "vision_config": None}, {"vision_config": {}}])
def test_a_source_may_say_nothing(source):
    config = published_config("pg1-3b")
    assert config_json(config, "float16", source) == config_json(config, "float16")


def test_gemma_s_file_has_no_keys_of_gemma_2():
    text = config_json(published_config("pg1-3b"), "bfloat16")["text_config"]
    assert not [key for key in text if "cap" in key or "sliding" in key or key in ("layer_types", "query_pre_attn_scalar")]


@pytest.mark.parametrize("config", PUBLISHED, ids=NAMES)
def test_the_sizes_that_other_programs_take_from_the_top_are_those_of_the_parts(config):
    data = config_json(config, "bfloat16")
    assert data["hidden_size"] == data["projection_dim"] == data["vision_config"]["projection_dim"] == config.text.hidden_size
    assert data["vocab_size"] == config.text.vocab_size
    assert data["text_config"]["num_image_tokens"] == data["vision_config"]["num_image_tokens"] == config.vision.num_patches
    assert data["image_token_index"] == data["image_token_id"]
    for part in (data, data["text_config"], data["vision_config"]):
        assert part["dtype"] == part["torch_dtype"] == "bfloat16"


def test_what_classes_default_to_is_said_all_the_same():
    data = config_json(published_config("pg1-3b"), "bfloat16")
    text, vision = data["text_config"], data["vision_config"]
    assert text["hidden_act"] == text["hidden_activation"] == vision["hidden_act"] == "gelu_pytorch_tanh"
    assert text["use_bidirectional_attention"] is True
    assert (text["attention_bias"], text["attention_dropout"], vision["attention_dropout"]) == (False, 0.0, 0.0)
    assert (text["rope_theta"], text["rope_parameters"]) == (10000.0, {"rope_type": "default", "rope_theta": 10000.0})
    assert data["architectures"] == ["PaliGemmaForConditionalGeneration"]


# Other programs


def differences(ours, theirs, names) -> dict:
    """Fields whose value another program's config has otherwise."""
    pairs = {name: (getattr(ours, name), getattr(theirs, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != (tuple(pair[1]) if isinstance(pair[1], list) else pair[1])}


def field_names(cls, without=()) -> list[str]:
    return [field.name for field in fields(cls) if field.name not in without]


@pytest.mark.parametrize("config", PUBLISHED, ids=NAMES)
def test_transformers_reads_every_number_as_we_do(config):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.PaliGemmaConfig.from_dict(config_json(config, "bfloat16"))
    own = () if config.text.model_type == "gemma2" else field_names(GemmaConfig)[-5:]
    assert own == () or "layer_types" in own
    assert differences(config.text, theirs.text_config, field_names(GemmaConfig, ("rope_theta", *own))) == {}
    assert differences(config.vision, theirs.vision_config, field_names(SiglipConfig)) == {}
    assert differences(config, theirs, field_names(PaliGemmaConfig, ("text", "vision", "dtype"))) == {}
    assert theirs.text_config.rope_parameters == {"rope_type": "default", "rope_theta": config.text.rope_theta}
    assert theirs.text_config.use_bidirectional_attention is True
    assert theirs.vision_config.vision_use_head is False
    assert {str(part.dtype) for part in (theirs, theirs.text_config, theirs.vision_config)} == {"torch.bfloat16"}
    assert theirs.get_text_config().eos_token_id == 1


def test_numbers_of_the_other_kind_and_a_head_of_its_own_are_read_by_transformers():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    text = {"model_type": "gemma2", "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "rms_norm_eps": 1,
            "attn_logit_softcapping": 50, "final_logit_softcapping": 30, "query_pre_attn_scalar": 256.0,
            "rope_theta": 10000}  # fmt: skip
    source = {"model_type": "paligemma", "tie_word_embeddings": False, "text_config": text, "vision_config": {"layer_norm_eps": 1}}
    theirs = transformers.PaliGemmaConfig.from_dict(config_json(PaliGemmaConfig.from_dict(source), "float16"))
    assert (theirs.text_config.attn_logit_softcapping, theirs.text_config.query_pre_attn_scalar) == (50.0, 256)
    assert theirs.tie_word_embeddings is theirs.text_config.tie_word_embeddings is False


def test_mlx_vlm_reads_every_number_as_we_do():
    mlx_vlm = pytest.importorskip("mlx_vlm.models.paligemma", reason="mlx-vlm is not installed")
    for config in PUBLISHED:
        theirs = mlx_vlm.ModelConfig.from_dict(config_json(config, "bfloat16"))
        own = () if config.text.model_type == "gemma2" else field_names(GemmaConfig)[-5:]  # without meaning for Gemma
        assert differences(config.text, theirs.text_config, field_names(GemmaConfig, own)) == {}
        assert differences(config.vision, theirs.vision_config, field_names(SiglipConfig)) == {}
        assert differences(config, theirs, ["image_token_index", "pad_token_id", "eos_token_id"]) == {}
        assert theirs.vision_config.projection_dim == theirs.hidden_size == config.text.hidden_size
        assert theirs.text_config.use_bidirectional_attention is True
        assert theirs.text_config.hidden_activation == "gelu_pytorch_tanh"
