"""A quantised model in memory, with the numbers that `convert -q` would write, and no folder."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from ..common import memory
from ..common.checkpoint import Checkpoint
from ..common.config import PaliGemmaConfig
from ..common.memory import Row
from ..common.tensors import WEIGHT
from ..conversion import Conversion
from ..device import on_gpu
from ..fused_layers import QUERIES
from ..fusion import fuse
from ..memory import free_bytes, small_cache
from ..model.paligemma import PaliGemma
from ..packed_layers import pack_modules, unpacked
from ..quantization import Recipe
from ..tensor_reader import Tensors


@dataclass(frozen=True)
class Quantised:
    """A model ready for answers, and the bytes that its weights take in files."""

    model: PaliGemma
    nbytes: int


def quantise(checkpoint: Checkpoint, recipe: Recipe, dtype: str) -> Quantised:
    """Quantise a checkpoint tensor by tensor.

    On the CPU a float32 model gets its weights unpacked: the same numbers, and MLX's own products of packed ones take there
    seven times as long.

    Args:
        checkpoint: not quantised.
        recipe: which modules get how many bits.
        dtype: of the activations.

    Raises:
        TooLargeError: there is not the memory for it beside what is loaded; nothing has been read then.
    """
    unpacks = dtype == "float32" and not on_gpu()
    _check_memory(checkpoint.config, recipe, dtype, unpacks)
    with small_cache(checkpoint.config):
        model, nbytes = _load(Conversion(checkpoint, recipe=recipe), getattr(mx, dtype), unpacks)
        return Quantised(fuse(model), nbytes)


def _load(conversion: Conversion, dtype: mx.Dtype, unpacks: bool) -> tuple[PaliGemma, int]:
    weights: Tensors = {}
    nbytes = 0
    for tensors in conversion.tensors():
        nbytes += sum(array.nbytes for array in tensors.values())
        weights |= _loaded(tensors, conversion, dtype, unpacks)
    model = PaliGemma(conversion.config)
    pack_modules(model, {} if unpacks else conversion.packings, dtype)
    model.load_weights(list(weights.items()), strict=True)
    model.eval()
    return model, nbytes


def _loaded(tensors: Tensors, conversion: Conversion, dtype: mx.Dtype, unpacks: bool) -> Tensors:
    """As the model takes them, in memory."""
    cast = {name: array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array for name, array in tensors.items()}
    if unpacks and len(cast) > 1:
        name = next(iter(cast))
        cast = {name: unpacked(cast, conversion.packings[name.removesuffix(WEIGHT)], dtype)}
    mx.eval(list(cast.values()))
    return cast


def _check_memory(config: PaliGemmaConfig, recipe: Recipe, dtype: str, unpacks: bool) -> None:
    whole = float(memory.BITS[dtype])
    bits = max(form.bits_per_weight for form in (recipe.packing, recipe.tender))
    layers, table = (whole, whole) if unpacks else (bits, memory.quantised_bits(recipe.embedding_bits))
    need = memory.weight_bytes(config, layers, table)
    memory.check_model(config, dtype, Row(queries=QUERIES), free_bytes(), weights=need)
