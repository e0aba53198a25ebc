"""What is to be measured, whether it fits here, and the model for it: loaded, or of random weights made in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..common import memory
from ..common.checkpoint import check_dtype, read_checkpoint
from ..common.config import PaliGemmaConfig
from ..common.errors import OptionError, PromptError
from ..common.hub import find_folder
from ..common.packed import Packing
from ..common.tensors import WEIGHT
from ..fused_layers import QUERIES
from ..fusion import fuse
from ..memory import free_bytes
from ..model.paligemma import PaliGemma
from ..packed_layers import pack_modules, packed
from ..published import published_config
from ..quantization import Recipe
from ..quantization import plan as packing_plan
from ..weights import load_model

DRAWN_ROWS = 1024  # of each weight; the rows after them repeat them, since times do not depend on values


@dataclass(frozen=True)
class Setup:
    """One measurement. `model` is a folder or Hub id, `random` the size of a model to make; both None: the bundled demo."""

    model: str | None = None
    random: str | None = None
    resolution: int | None = None  # pixels; of a random model only, None: 224
    dtype: str | None = None  # None: as stored; random models bfloat16
    prompt_tokens: int = 24  # per row, beside the picture's
    generation_tokens: int = 100  # per row
    batch: int = 1
    trials: int = 5
    quantised: int | None = None  # bits of the text model's weights, with --random; the embedding table gets 8

    def __post_init__(self) -> None:
        """Raises OptionError where options exclude each other or are out of range."""
        if self.model is not None and self.random is not None:
            raise OptionError("--model and --random exclude each other; give one of them")
        if self.resolution is not None and self.random is None:
            raise OptionError("--resolution goes with --random; a checkpoint has the resolution that it was trained for")
        if self.quantised is not None:
            if self.random is None:
                raise OptionError("--bits goes with --random; of a checkpoint `mlx-paligemma convert -q` makes a quantised one")
            Recipe(self.quantised)  # refuses other numbers
        least = {"prompt_tokens": 1, "generation_tokens": 2, "batch": 1, "trials": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be at least {value}")

    @property
    def name(self) -> str:
        """What the model is called."""
        return self.random or self.model or "demo"


@dataclass(frozen=True)
class Plan:
    """A setup with its model's config and dtype, before anything is loaded."""

    setup: Setup
    config: PaliGemmaConfig
    dtype: str
    folder: Path | None  # of the checkpoint; None: random weights
    packings: Mapping[str, Packing] = field(default_factory=dict)  # of modules whose weights are packed

    @property
    def context(self) -> int:
        """Tokens of a row before the first new one."""
        return self.config.vision.num_patches + self.setup.prompt_tokens

    @property
    def bits(self) -> int:
        """Of a number."""
        return 8 * int(getattr(mx, self.dtype).size)

    @property
    def weight_bytes(self) -> int:
        """Of the loaded model."""
        return memory.packed_bytes(self.config, self.packings, self.bits)

    @property
    def row(self) -> memory.Row:
        """One row of the batch."""
        return memory.Row(1, self.setup.prompt_tokens, self.setup.generation_tokens, QUERIES)


def plan(setup: Setup) -> Plan:
    """Read or make the config.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        TooLargeError: the run needs more memory than there is.
        PromptError: the tokens do not fit into the model's context.
        OptionError: a size, resolution or dtype that there is not.
    """
    planned = _random_plan(setup) if setup.random is not None else _stored_plan(setup)
    context, wanted = planned.config.text.max_position_embeddings, planned.context + setup.generation_tokens
    if wanted > context:
        room = context - planned.config.vision.num_patches
        raise PromptError(f"the model's context is {context} tokens, {wanted} are asked for; -p and -g may have {room} together")
    _check_memory(planned, free_bytes())
    return planned


def _check_memory(planned: Plan, free: int) -> None:
    config, bits = planned.config, planned.bits
    weights = planned.weight_bytes
    memory.check_model(config, planned.dtype, planned.row, free, weights=weights, quantises=True)
    memory.check_batch(config, bits, planned.row, planned.setup.batch, free - weights)


def _random_plan(setup: Setup) -> Plan:
    assert setup.random is not None
    config = published_config(setup.random, 224 if setup.resolution is None else setup.resolution)
    packings = packing_plan(config, Recipe(setup.quantised)) if setup.quantised else {}
    return Plan(setup, config, check_dtype(setup.dtype or "bfloat16"), None, packings)


def _stored_plan(setup: Setup) -> Plan:
    checkpoint = read_checkpoint(find_folder(setup.model))
    dtype = setup.dtype or ("float32" if setup.model is None else checkpoint.dtype)
    return Plan(setup, checkpoint.config, check_dtype(dtype), checkpoint.path, checkpoint.packings)


def needed_bytes(planned: Plan) -> int:
    """Peak of the whole run."""
    return planned.weight_bytes + planned.setup.batch * memory.row_bytes(planned.config, planned.row, planned.bits)


def open_model(planned: Plan) -> PaliGemma:
    """The model as inference has it, all in memory."""
    if planned.folder is not None:
        return fuse(load_model(read_checkpoint(planned.folder), planned.dtype))
    return fuse(random_model(planned.config, getattr(mx, planned.dtype), planned.packings))


def random_model(config: PaliGemmaConfig, dtype: mx.Dtype, packings: Mapping[str, Packing] | None = None) -> PaliGemma:
    """A model of random weights, made tensor by tensor, so that the peak stays near the final size."""
    model = PaliGemma(config)  # its own weights are only promised, and never made
    promised: Any = tree_flatten(model.parameters())
    keys = mx.random.split(mx.random.key(0), len(promised))
    weights: dict[str, mx.array] = {}
    for (name, array), key in zip(promised, keys, strict=True):
        packing = (packings or {}).get(name.removesuffix(WEIGHT)) if name.endswith(WEIGHT) else None
        made = _random(array, dtype, key)
        weights |= {name: made} if packing is None else packed(name, made, packing)
        mx.eval(weights)
    pack_modules(model, packings or {}, dtype)
    model.load_weights(list(weights.items()), strict=True)
    model.eval()
    return model


def _random(initial: mx.array, dtype: mx.Dtype, key: mx.array) -> mx.array:
    """Values that keep activations near 1: a matrix by its fan-in, a vector near what the module starts with."""
    if initial.ndim == 1:
        made = (initial + mx.random.uniform(-0.1, 0.1, initial.shape, key=key)).astype(dtype)
    else:
        made = random_matrix(initial.shape, dtype, key)
    mx.eval(made)
    return made


def random_matrix(shape: tuple[int, ...], dtype: mx.Dtype, key: mx.array) -> mx.array:
    """[rows, ...] of variance 1 / fan-in, of which the first DRAWN_ROWS are drawn and the others repeat them."""
    fan_in = 1
    for size in shape[1:]:
        fan_in *= size
    bound = (3 / fan_in) ** 0.5
    drawn = mx.random.uniform(-bound, bound, (min(shape[0], DRAWN_ROWS), *shape[1:]), key=key).astype(dtype)
    times, rest = divmod(shape[0], len(drawn))
    return mx.concatenate([drawn] * times + [drawn[:rest]])
