"""The product's comparison, as the tests use it: calls in memory, tiny models, limits of their width."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn
import numpy as np
import torch
from checkpoints import IMAGE_TOKEN
from torch import nn

from mlx_paligemma.common.processor import ModelInputs
from mlx_paligemma.fusion import decoder
from mlx_paligemma.generation import as_mlx
from mlx_paligemma.model import kv_cache as mlx_kv_cache
from mlx_paligemma.parity import budgets
from mlx_paligemma.parity.call import Call
from mlx_paligemma.parity.comparison import worst_of_each
from mlx_paligemma.parity.distance import relative_error
from mlx_paligemma.parity.recording import record
from mlx_paligemma.parity.replay import compare_each
from mlx_paligemma.parity.report import ModuleParity
from torch_ref import kv_cache as torch_kv_cache
from torch_ref.generation import as_torch

from .batches import random_inputs, tokens
from .tiny_models import Pair

# What any module of a tiny model may be off by in float32, whatever its own budget: only the order of summation differs, measured
# at 2e-6 and below, where planted faults start at 3e-5 (an epsilon).
MODULE_LIMIT = 5e-6
LOGITS_LIMIT = 1e-5  # from pixels to logits the roundings of all modules add up, measured at 4e-6 and below
TIE = budgets.TIE

WHOLE = ("", "prefill", "decode")  # calls that are the whole model, pixels or tokens to logits


def compare(calls: Iterable[Call], model: mlx.nn.Module) -> list[ModuleParity]:
    """Each of the MLX model's modules on the recorded arguments, worst call of each, in the order of `calls`."""
    return worst_of_each(list(compare_each(calls, model)))


def blamed(found: list[ModuleParity]) -> str | None:
    """The first module that fails: the one that makes the error, since parts return before the whole."""
    return next((module.name or "model" for module in found if module.fails), None)


def worst(found: list[ModuleParity]) -> ModuleParity:
    """The module with the largest error; NaN is the largest."""
    return max(found, key=lambda module: (np.isnan(module.relative_error), module.relative_error))


@dataclass(frozen=True)
class Scenario:
    """Everything at once: three rows of unlike lengths, one of them with two pictures; then the same prompts decoded."""

    inputs: ModelInputs  # with a suffix
    prompts: ModelInputs  # without
    suffix: np.ndarray  # int [3, 7]
    chunks: tuple[int, ...] = (1, 1, 4, 1)

    @classmethod
    def of(cls, pair: Pair) -> Scenario:
        inputs = random_inputs(pair.config, (12, 9, 5), (9, 4, 12), (1, 2, 1))
        prompts = random_inputs(pair.config, (12, 9, 5), None, (1, 2, 1))
        return cls(inputs, prompts, np.random.default_rng(1).integers(3, IMAGE_TOKEN, (3, 7)))

    def calls(self, pair: Pair) -> list[Call]:
        def run():
            pair.reference(**as_torch(self.inputs))
            torch_decoded(pair.reference, self.prompts, self.suffix, list(self.chunks))

        return record(pair.reference, run)

    def logits_error(self, pair: Pair, model) -> float:
        """The larger of the errors of the forward pass and of decoding, over all tokens that are not padding."""
        real = tokens(self.inputs)
        forward = relative_error(mlx_logits(model, self.inputs)[real], torch_logits(pair.reference, self.inputs)[real])
        run = (self.prompts, self.suffix, list(self.chunks))
        decoded = relative_error(mlx_decoded(model, *run), torch_decoded(pair.reference, *run))
        return max(forward, decoded, key=lambda value: (np.isnan(value), value))


def parity_table(pairs: dict[int, Pair]) -> str:
    """For the README: the worst module and the logits, for both generations."""
    lines = ["| model | modules | worst module | its error | logits error |", "|---|---|---|---|---|"]
    for generation, pair in pairs.items():
        scenario = Scenario.of(pair)
        parts = [part for part in compare(scenario.calls(pair), pair.model) if part.name not in WHOLE]
        top, logits = worst(parts), scenario.logits_error(pair, pair.model)
        lines.append(f"| PaliGemma {generation} | {len(parts)} | `{top.name}` | {top.relative_error:.1e} | {logits:.1e} |")
    return "\n".join(lines)


def report(text: str) -> None:
    """A line that pytest shows with -s."""
    sys.stdout.write(f"\n{text}")


def torch_logits(model: nn.Module, inputs: ModelInputs) -> np.ndarray:
    """The reference's logits [B, L, V]."""
    with torch.no_grad():
        return model(**as_torch(inputs)).numpy()


def mlx_logits(model: mlx.nn.Module, inputs: ModelInputs) -> np.ndarray:
    """MLX's logits [B, L, V]."""
    return np.array(model(**as_mlx(inputs)))


def torch_decoded(model: nn.Module, inputs: ModelInputs, suffix: np.ndarray, chunks: list[int]) -> np.ndarray:
    """The reference's logits [B, 1 + T, V] after the prompt and after each of the suffix tokens [B, T], through the cache."""
    with torch.no_grad():
        tensors = as_torch(inputs)
        capacity = inputs.input_ids.shape[1] + suffix.shape[1]
        cache = torch_kv_cache.KVCache(model.config.text, len(suffix), capacity, torch.float32, tensors.get("padding"))
        parts = [model.prefill(tensors["input_ids"], model.encode_images(tensors["pixel_values"]), cache)]
        parts += [model.decode(torch.from_numpy(part), cache) for part in _split(suffix, chunks)]
        return torch.cat(parts, dim=1).numpy()


def mlx_decoded(model: mlx.nn.Module, inputs: ModelInputs, suffix: np.ndarray, chunks: list[int]) -> np.ndarray:
    """MLX's logits [B, 1 + T, V] after the prompt and after each of the suffix tokens [B, T], through the cache."""
    arrays = as_mlx(inputs)
    capacity = inputs.input_ids.shape[1] + suffix.shape[1]
    cache = mlx_kv_cache.KVCache(model.config.text, len(suffix), capacity, mx.float32, arrays.get("padding"))
    parts = [model.prefill(arrays["input_ids"], model.encode_images(arrays["pixel_values"]), cache)]
    decode = decoder(model, cache)
    parts += [decode(mx.array(part)) for part in _split(suffix, chunks)]
    return np.array(mx.concatenate(parts, axis=1))


def _split(suffix: np.ndarray, chunks: list[int]) -> list[np.ndarray]:
    assert sum(chunks) == suffix.shape[1]
    return np.split(suffix, np.cumsum(chunks)[:-1], axis=1)
