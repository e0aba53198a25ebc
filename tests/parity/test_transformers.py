"""The reference, and MLX with it, against transformers' own PaliGemma: the same folder, the same tokens, the same logits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from mlx_paligemma.common.processor import ModelInputs
from mlx_paligemma.common.tensors import canonical_name, expected_shapes

from .batches import BATCHES, random_inputs, random_suffix, tokens, with_suffix
from .compare import LOGITS_LIMIT, mlx_decoded, mlx_logits, relative_error, report, torch_decoded, torch_logits
from .originals import PICTURES, PROMPTS, original, original_decoded, original_logits, transformers
from .tiny_models import Pair, config_json, fill, write_pair

SUFFIXES = ["<loc0012><loc0400><loc0900><loc1023> cat", "a cat", "<loc0000><loc0001><loc0002><loc0003><seg000><seg127> cat ; car"]


@pytest.fixture(scope="module")
def originals(pairs) -> dict[int, torch.nn.Module]:
    """transformers' models of the two tiny folders."""
    return {generation: original(pair.folder) for generation, pair in pairs.items()}


def errors(pair: Pair, model, inputs: ModelInputs) -> tuple[float, float]:
    """Of the reference and of MLX against transformers, over all tokens that are not padding."""
    real = tokens(inputs)
    wanted = original_logits(model, inputs, pair)[real]
    return (
        relative_error(torch_logits(pair.reference, inputs)[real], wanted),
        relative_error(mlx_logits(pair.model, inputs)[real], wanted),
    )


@pytest.mark.parametrize("batch", BATCHES)
def test_both_backends_give_transformers_logits(pair, originals, generation, batch):
    found = errors(pair, originals[generation], random_inputs(pair.config, *BATCHES[batch]))
    report(f"{batch}: torch_ref {found[0]:.1e}, mlx {found[1]:.1e}")
    assert max(found) <= LOGITS_LIMIT


@pytest.mark.parametrize("changes", [
    {"sliding_window": 3}, {"sliding_window": 4096}, {"attn_logit_softcapping": 1.5}, {"final_logit_softcapping": 3.0},
    {"attn_logit_softcapping": None, "final_logit_softcapping": None}, {"query_pre_attn_scalar": 20}, {"num_key_value_heads": 4},
    {"layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]},
], ids=str)  # fmt: skip
def test_windows_caps_scales_and_layer_kinds_mean_what_they_mean_in_transformers(tmp_path, changes):
    pair = write_pair(tmp_path, config_json(2, **changes))
    inputs = random_inputs(pair.config, (12, 9, 5), (9, 4, 12))
    assert max(errors(pair, original(tmp_path), inputs)) <= LOGITS_LIMIT


def test_a_head_of_its_own_is_read_as_transformers_reads_it(tmp_path, generation):
    pair = write_pair(tmp_path, config_json(generation), own_head=True)
    assert max(errors(pair, original(tmp_path), random_inputs(pair.config, (9, 4), (3, 5)))) <= LOGITS_LIMIT


def test_what_save_pretrained_writes_of_a_loaded_model_is_read_back_the_same(tmp_path, pair, originals, generation):
    originals[generation].save_pretrained(tmp_path)
    assert any(key.startswith("vision_tower.vision_model.") for key in keys(tmp_path))  # the layout that was loaded
    assert_same_weights(Pair.load(tmp_path), pair)


def test_what_save_pretrained_writes_of_a_new_model_is_read(tmp_path, generation):
    config = transformers.PaliGemmaConfig(**config_json(generation))
    config._attn_implementation = "eager"
    model = transformers.PaliGemmaForConditionalGeneration(config).eval()
    fill(model.model, seed=7)
    model.save_pretrained(tmp_path)
    assert any(key.startswith("vision_tower.encoder.") for key in keys(tmp_path))  # transformers' own mixture of layouts
    pair = Pair.load(tmp_path)
    assert max(errors(pair, model, random_inputs(pair.config, (9, 4), (3, 5)))) <= LOGITS_LIMIT


def test_our_names_are_those_of_a_folder_of_the_hub(pair):
    assert {canonical_name(key) for key in keys(pair.folder)} == set(expected_shapes(pair.config))
    assert all(key.startswith(("vision_tower.vision_model.", "multi_modal_projector.", "language_model.model."))
               for key in keys(pair.folder))  # fmt: skip


def keys(folder: Path) -> list[str]:
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        return list(file.keys())


def assert_same_weights(found: Pair, wanted: Pair) -> None:
    inputs = random_inputs(wanted.config, (6, 4), (3, 5))
    assert np.array_equal(torch_logits(found.reference, inputs), torch_logits(wanted.reference, inputs))
    assert np.array_equal(mlx_logits(found.model, inputs), mlx_logits(wanted.model, inputs))


@pytest.mark.parametrize("suffixes", [None, SUFFIXES], ids=["prompts", "prompts and suffixes"])
def test_pictures_and_texts_give_transformers_logits_through_our_processor(pair, originals, generation, suffixes):
    inputs = pair.processor()(PICTURES, PROMPTS, suffixes)
    assert inputs.padding is not None
    assert max(errors(pair, originals[generation], inputs)) <= LOGITS_LIMIT


def test_decoding_with_the_cache_equals_transformers_with_its_own(pair, originals, generation):
    """Rows of unlike lengths, beyond the window; transformers' sliding layers throw old keys away."""
    prompts = random_inputs(pair.config, (12, 9, 5))
    suffix = random_suffix(3, 24)
    wanted = original_logits(originals[generation], with_suffix(prompts, suffix), pair)[:, -25:]
    cached = original_decoded(originals[generation], prompts, suffix, pair)
    assert relative_error(cached, wanted) <= LOGITS_LIMIT
    for found in (torch_decoded(pair.reference, prompts, suffix, [1] * 24), mlx_decoded(pair.model, prompts, suffix, [1] * 24)):
        assert relative_error(found, cached) <= LOGITS_LIMIT
