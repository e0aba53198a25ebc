"""Gradients: MLX and the reference agree on the prefix-LM loss and on its gradient by every parameter, in float32."""

from copy import deepcopy
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from mlx.utils import tree_flatten
from torch.nn import functional as F

from mlx_paligemma.common.processor import IGNORED, ModelInputs
from mlx_paligemma.common.tensors import PATCHES
from mlx_paligemma.generation import as_mlx
from mlx_paligemma.model import gemma, paligemma
from torch_ref.generation import as_torch
from torch_ref.train import Batch, BatchPart, suffix_loss

from .batches import random_inputs
from .compare import report
from .tiny_models import Pair, config_json, write_pair

LIMIT = 1e-4  # of a parameter's largest gradient: sums over all positions of products that are right to 1e-6
FLOOR = 1e-7  # of the model's largest gradient: what rounding leaves of gradients that are zero
LOSS_LIMIT = 1e-6

PADDED = ((12, 9, 5), (9, 4, 12), ())  # text tokens of each prefix, of each suffix, pictures of each row
PICTURES = ((8, 3, 6), (5, 9, 2), (1, 2, 2))

Gradients = dict[str, np.ndarray]  # by parameter, in the reference's layout


def batch(pair: Pair, shape) -> ModelInputs:
    """Rows of unlike lengths whose suffixes end in eos."""
    inputs = random_inputs(pair.config, *shape)
    assert inputs.padding is not None
    eos = pair.config.eos_token_id
    inputs.input_ids[:, -1], inputs.labels[:, -1] = eos, eos
    return inputs


def reference_gradients(pair: Pair, inputs: ModelInputs) -> tuple[float, Gradients]:
    """Loss and gradients through the whole of `model(...)`, for any number of pictures per row."""
    model = deepcopy(pair.reference).requires_grad_(True)
    labels = torch.from_numpy(inputs.labels[:, 1:]).long()
    logits = model(**as_torch(inputs))[:, :-1]
    return differentiated(model, F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED))


def training_gradients(pair: Pair, inputs: ModelInputs) -> tuple[float, Gradients]:
    """Loss and gradients of the training loop itself, which shows one picture per row."""
    model = deepcopy(pair.reference).requires_grad_(True)
    arrays = (np.arange(len(inputs.input_ids)), inputs.input_ids, inputs.padding, inputs.prefix_length, inputs.labels)
    part = BatchPart(*(torch.from_numpy(array).long() for array in arrays))
    pixels = torch.from_numpy(inputs.pixel_values[:, 0])
    return differentiated(model, suffix_loss(model, Batch(pixels, (part,), (), ()), 0))


def differentiated(model: torch.nn.Module, loss: torch.Tensor) -> tuple[float, Gradients]:
    loss.backward()
    return loss.item(), {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}


def mlx_gradients(model: paligemma.PaliGemma, inputs: ModelInputs) -> tuple[float, Gradients]:
    labels = mx.array(inputs.labels[:, 1:])
    wanted = labels != IGNORED

    def loss(model):
        logits = model(**as_mlx(inputs))[:, :-1]
        return (nn.losses.cross_entropy(logits, mx.where(wanted, labels, 0)) * wanted).sum() / wanted.sum()

    value, gradients = nn.value_and_grad(model, loss)(model)
    arrays = {name: np.array(gradient) for name, gradient in tree_flatten(gradients)}
    return value.item(), arrays | {PATCHES: arrays[PATCHES].transpose(0, 3, 1, 2)}


def wrong(found: Gradients, reference: Gradients) -> dict[str, float]:
    """Parameters whose gradients differ, and by how much of their largest one."""
    assert found.keys() == reference.keys()
    floor = FLOOR * max(np.abs(gradient).max() for gradient in reference.values())
    errors = {name: np.abs(found[name] - gradient).max() for name, gradient in reference.items()}
    sizes = {name: np.abs(gradient).max() for name, gradient in reference.items()}
    relative = {name: error / sizes[name] for name, error in errors.items() if error > floor}
    report(f"worst {max(relative.values(), default=0.0):.1e}")
    return {name: error for name, error in relative.items() if not error <= LIMIT}


@pytest.mark.parametrize("shape", [PADDED, PICTURES], ids=["padding", "padding and two pictures"])
def test_loss_and_gradients_are_the_references(pair, shape):
    inputs = batch(pair, shape)
    loss, gradients = mlx_gradients(pair.model, inputs)
    expected, reference = reference_gradients(pair, inputs)
    assert loss == pytest.approx(expected, rel=LOSS_LIMIT)
    assert wrong(gradients, reference) == {}


def test_loss_and_gradients_are_those_of_the_training_loop(pair):
    inputs = batch(pair, PADDED)
    loss, gradients = mlx_gradients(pair.model, inputs)
    expected, reference = training_gradients(pair, inputs)
    assert loss == pytest.approx(expected, rel=LOSS_LIMIT)
    assert wrong(gradients, reference) == {}


def test_a_head_of_its_own_has_its_own_gradient(tmp_path):
    pair = write_pair(tmp_path, config_json(2), own_head=True)
    inputs = batch(pair, PADDED)
    reference = reference_gradients(pair, inputs)[1]
    assert "lm_head.weight" in reference
    assert wrong(mlx_gradients(pair.model, inputs)[1], reference) == {}


def test_every_parameter_has_a_gradient_but_biases_that_softmax_ignores(pair):
    reference = reference_gradients(pair, batch(pair, PICTURES))[1]
    largest = max(np.abs(gradient).max() for gradient in reference.values())
    without = {name for name, gradient in reference.items() if np.abs(gradient).max() <= FLOOR * largest}
    layers = range(pair.config.vision.num_hidden_layers)
    assert without == {f"vision_tower.encoder.layers.{layer}.self_attn.k_proj.bias" for layer in layers}


def test_padding_has_no_part_in_the_gradients(pair):
    inputs = batch(pair, PADDED)
    ids = inputs.input_ids.copy()
    ids[inputs.attention_mask == 0] = 7
    assert not np.array_equal(ids, inputs.input_ids)
    changed = mlx_gradients(pair.model, replace(inputs, input_ids=ids))[1]
    assert wrong(changed, mlx_gradients(pair.model, inputs)[1]) == {}


def test_a_causal_prefix_shows_in_loss_and_gradients(pair, monkeypatch):
    inputs = batch(pair, PADDED)
    expected, reference = reference_gradients(pair, inputs)
    seen = gemma.prefix_lm_mask
    monkeypatch.setattr(gemma, "prefix_lm_mask", lambda start, q, k, prefix, window=None: seen(start, q, k, 0 * prefix, window))
    loss, gradients = mlx_gradients(pair.model, inputs)
    assert loss != pytest.approx(expected, rel=LOSS_LIMIT)
    assert len(wrong(gradients, reference)) > len(reference) / 2


def test_an_error_in_the_backward_pass_alone_shows_at_its_parameters(pair, monkeypatch):
    """The loss is right, and yet nothing of the vision tower would learn."""
    inputs = batch(pair, PICTURES)
    expected, reference = reference_gradients(pair, inputs)
    encode = paligemma.PaliGemma.encode_images
    monkeypatch.setattr(paligemma.PaliGemma, "encode_images", lambda self, pixels: mx.stop_gradient(encode(self, pixels)))
    loss, gradients = mlx_gradients(pair.model, inputs)
    assert loss == pytest.approx(expected, rel=LOSS_LIMIT)
    differing = wrong(gradients, reference)
    assert differing and all(name.startswith(("vision_tower.", "multi_modal_projector.")) for name in differing)
