"""Each MLX module equals the PyTorch module of the same name on the same input, and the tiny models prove it.

Run with -s for the table of the README: the worst module, and the logits.
"""

import mlx.core as mx
import numpy as np
import pytest
import torch
from checkpoints import IMAGE_TOKEN

from mlx_paligemma.common.processor import ModelInputs
from mlx_paligemma.parity.distance import relative_error
from mlx_paligemma.parity.recording import record
from mlx_paligemma.parity.report import ModuleParity
from torch_ref.generation import as_torch

from .batches import random_inputs
from .compare import (
    LOGITS_LIMIT,
    MODULE_LIMIT,
    WHOLE,
    Scenario,
    blamed,
    compare,
    parity_table,
    report,
    torch_logits,
    worst,
)
from .tiny_models import Pair, config_json, write_pair

# A constant added to all scores of a query leaves its attention as it is, so no logit depends on these.
NO_EFFECT = "self_attn.k_proj.bias"

VARIANTS = {
    "PaliGemma 1 with grouped heads": (1, {"num_key_value_heads": 2}),
    "PaliGemma 1 with heads of 256, the published size": (1, {"head_dim": 256, "num_hidden_layers": 1}),
    "PaliGemma 1 with another rotary base": (1, {"rope_theta": 500.0}),
    "PaliGemma 2 with one key-value head": (2, {"num_key_value_heads": 1}),
    "PaliGemma 2 with a key-value head for each query head": (2, {"num_key_value_heads": 4}),
    "PaliGemma 2 with heads of 128, as in 28B": (2, {"head_dim": 128, "num_hidden_layers": 2}),
    "PaliGemma 2 without caps and window": (
        2, {"attn_logit_softcapping": None, "final_logit_softcapping": None, "sliding_window": None}
    ),
    "PaliGemma 2 that slides in its last layers": (2, {"layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 2}),
}  # fmt: skip


def assert_equal(pair: Pair) -> list[ModuleParity]:
    scenario = Scenario.of(pair)
    differences = compare(scenario.calls(pair), pair.model)
    assert blamed(differences) is None, f"{worst(differences)}"
    assert all(part.relative_error <= MODULE_LIMIT for part in differences if part.name not in WHOLE), f"{worst(differences)}"
    assert scenario.logits_error(pair, pair.model) <= LOGITS_LIMIT
    return differences


def test_every_module_equals_the_reference_on_the_same_input(pair):
    assert_equal(pair)


def test_the_parity_table_stays_within_the_limits(pairs):
    table = parity_table(pairs)
    report(table)
    for line in table.splitlines()[2:]:
        module, logits = (float(cell) for cell in line.split("|")[4:6])
        assert module <= MODULE_LIMIT and logits <= LOGITS_LIMIT


def test_no_module_escapes_the_comparison(pair):
    compared = {call.name for call in Scenario.of(pair).calls(pair)}
    uncalled = {"vision_tower.embeddings.position_embedding"}  # only its weight is used
    modules = {name for name, _ in pair.model.named_modules()}
    assert modules - uncalled <= compared
    assert {"embed", "encode_images", "logits", "language_model.embed", "prefill", "decode"} == compared - modules


@pytest.mark.parametrize("name", VARIANTS)
def test_every_module_equals_the_reference_in_other_shapes(name, tmp_path):
    generation, changes = VARIANTS[name]
    assert_equal(write_pair(tmp_path, config_json(generation, **changes)))


def test_every_module_equals_the_reference_with_a_head_of_its_own(generation, tmp_path):
    pair = write_pair(tmp_path, config_json(generation), own_head=True)
    assert "lm_head" in {difference.name for difference in assert_equal(pair)}


@pytest.mark.slow
@pytest.mark.parametrize(("generation", "text"), [
    (1, {"hidden_size": 2048, "intermediate_size": 16384, "num_attention_heads": 8, "head_dim": 256, "num_hidden_layers": 1}),
    (2, {"hidden_size": 2304, "intermediate_size": 9216, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
         "query_pre_attn_scalar": 256, "num_hidden_layers": 2}),
], ids=["paligemma", "paligemma2"])  # fmt: skip
def test_modules_of_published_width_equal_the_reference(generation, text, tmp_path):
    config = config_json(generation, **text)
    config["vision_config"] |= {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 1}
    pair = write_pair(tmp_path, config)
    tensors = as_torch(random_inputs(pair.config, (2,), (2,)))
    differences = compare(record(pair.reference, lambda: pair.reference(**tensors)), pair.model)
    report(str(worst(differences)))
    assert blamed(differences) is None


def test_a_text_row_is_the_table_row_times_the_root_of_the_width(pair):
    inputs = random_inputs(pair.config, (6,))
    rows = embedded(pair, inputs)
    place = int(np.argmax(inputs.input_ids[0] != IMAGE_TOKEN))
    table = pair.reference.language_model.embed_tokens.weight.numpy()
    expected = table[inputs.input_ids[0, place]] * np.sqrt(pair.config.text.hidden_size)
    for row in rows:
        assert relative_error(row[0, place], expected) <= MODULE_LIMIT


def test_an_image_row_is_what_the_projector_gives_unscaled(pair):
    inputs = random_inputs(pair.config, (6, 6), pictures=(1, 2))
    rows = embedded(pair, inputs)
    with torch.no_grad():
        features = pair.reference.vision_tower(torch.from_numpy(inputs.pixel_values[1, 1:]))
        expected = pair.reference.multi_modal_projector(features).numpy()[0]
    patches = pair.config.vision.num_patches
    place = np.flatnonzero(inputs.input_ids[1] == IMAGE_TOKEN)[patches + 2]
    for row in rows:
        assert relative_error(row[1, place], expected[2]) <= MODULE_LIMIT


def embedded(pair: Pair, inputs: ModelInputs) -> list[np.ndarray]:
    """The text model's input rows [B, L, D] in both backends."""
    ids, pixels = inputs.input_ids, inputs.pixel_values
    with torch.no_grad():
        rows = pair.reference.encode_images(torch.from_numpy(pixels))
        reference = pair.reference.embed(torch.from_numpy(ids), rows).numpy()
    model = pair.model
    return [reference, np.array(model.embed(mx.array(ids), model.encode_images(mx.array(pixels))))]


def test_every_parameter_of_the_tiny_models_matters(pair):
    inputs = Scenario.of(pair).inputs
    logits = torch_logits(pair.reference, inputs)
    for name, parameter in pair.reference.named_parameters():
        kept = parameter.clone()
        parameter.zero_()
        effect = relative_error(torch_logits(pair.reference, inputs), logits)
        parameter.copy_(kept)
        assert effect > 1000 * LOGITS_LIMIT or name.endswith(NO_EFFECT), f"{name} changes the logits by {effect:.1e} only"


def test_attention_in_the_tiny_models_is_far_from_uniform(pair, monkeypatch):
    peaks, softmax = [], torch.softmax

    def watched(scores, dim, dtype):
        weights = softmax(scores, dim=dim, dtype=dtype)
        seen = (weights > 0).sum(-1)
        peaks.append(float((weights.amax(-1) * seen)[seen > 1].mean()))
        return weights

    monkeypatch.setattr(torch, "softmax", watched)
    torch_logits(pair.reference, Scenario.of(pair).inputs)
    assert len(peaks) == pair.config.vision.num_hidden_layers + pair.config.text.num_hidden_layers
    assert min(peaks) > 3  # times the weight that each key would have if all were alike


def test_logits_of_the_tiny_models_are_spread_out(pair):
    inputs = Scenario.of(pair).inputs
    assert torch_logits(pair.reference, inputs)[inputs.attention_mask.astype(bool)].std() > 0.2


def test_norm_weights_and_biases_of_the_tiny_models_are_not_zero(pair):
    vectors = {name: vector for name, vector in pair.reference.named_parameters() if vector.ndim == 1}
    assert vectors and all(float(vector.abs().mean()) > 0.05 for vector in vectors.values())
