"""What the decoding step and the prefill cost at full size, counted without computing: in seconds, with no memory for weights.

Usage: python benchmarks/tracer.py [--size pg2-3b] [--resolution 448] [--batch 1] [--kernels] [--json]

A kernel is a logical one: an operation of mx.fast, a group of element-wise operations as `mx.compile` makes it, a copy, or any
other operation that is not a view. Bytes are what each kernel reads and writes: a product or an attention reads its inputs
once, an update of a cache touches its new columns alone, a gather the rows that it takes. Set beside the counts is what
`mlx_paligemma.roofline` says the arithmetic demands, for the first step after a prompt of 24 tokens and a picture.

Not seen from here: kernels that a backend launches in parts (attention in two passes, a product split along its inner size,
the place of a dynamic update), copies inside kernels (operands of a product that are neither rows nor columns), the choice of
the next token, which follows the step, which attention kernel Metal takes and whether it writes its scores to memory, float32
within kernels, caches of the chip, launch times, how full the GPU is; and whether a cache that is written
to is held by anyone else, which would copy it: `tests/test_counters.py` measures that on a small model.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from typing import Annotated, Any
from unittest.mock import patch

import mlx.core as mx
import typer
from kernels import PRODUCTS, groups, kernels, read_and_written
from lazy_graph import VIEWS, Graph, trace
from mlx.utils import tree_map

from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.decode_step import capacity_for
from mlx_paligemma.fusion import FusedPaliGemma, fuse
from mlx_paligemma.model.kv_cache import KVCache
from mlx_paligemma.model.paligemma import PaliGemma
from mlx_paligemma.published import Size, published_config
from mlx_paligemma.roofline import decode_bytes, prefill_work

TEXT_TOKENS, NEW_TOKENS = 24, 64  # a request: its prompt beside the picture, and room for its answer
RESOLUTIONS = (224, 448, 896)
Call = tuple[Any, ...]  # a function and its arguments


@dataclass(frozen=True)
class Counters:
    """What a graph costs."""

    kernels: int
    bytes: int
    flops: int
    casts: int  # kernels that do nothing but convert
    repeats: int  # copies that write out what was broadcast
    float32: int  # arrays of 32-bit floats that are read from memory or written to it
    output_rows: int  # rows that the output layer computes
    names: dict[str, int]  # kernels by name


@dataclass(frozen=True)
class Row:
    """The counters of one model at one resolution, and what the arithmetic demands."""

    size: str
    resolution: int  # pixels
    batch: int
    decode: Counters
    prefill: Counters
    needed_bytes: float  # of a decoded token
    needed_flops: int  # of the prefill

    @property
    def bytes_ratio(self) -> float:
        """Bytes of a decoded token, relative to those it needs."""
        return self.decode.bytes / self.needed_bytes

    @property
    def flops_ratio(self) -> float:
        """FLOPs of the prefill, relative to those it needs."""
        return self.prefill.flops / self.needed_flops


def main(
    size: Annotated[Size | None, typer.Option(help="Left out: all released sizes.")] = None,
    resolution: Annotated[int | None, typer.Option(help="Pixels; left out: 224, 448 and 896.")] = None,
    batch: Annotated[int, typer.Option(help="Rows decoded together.")] = 1,
    names: Annotated[bool, typer.Option("--kernels", help="Also list a decoding step's kernels by name.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Print the table of counters."""
    sizes = [size] if size else [one for one in Size if one != Size.tiny]
    if not as_json:
        print(HEADER)
    for one, pixels in product(sizes, [resolution] if resolution else RESOLUTIONS):
        row = measure(one, pixels, batch)
        print(json.dumps(asdict(row)) if as_json else _line(row))
        if names and not as_json:
            print("  " + ", ".join(f"{count} {name}" for name, count in row.decode.names.items()))


def measure(size: str, resolution: int, batch: int = 1) -> Row:
    """The counters of a published size in bfloat16, and what is needed."""
    config = published_config(size, resolution)
    model = lazy_model(config)
    decode, prefill = (count(trace(*call), config) for call in (decode_call(model, batch), prefill_call(model, batch)))
    needed = decode_bytes(config, _prompt(config) + 1, batch=batch)
    return Row(str(size), resolution, batch, decode, prefill, needed, prefill_work(config, TEXT_TOKENS, batch).total)


def count(graph: Graph, config: PaliGemmaConfig) -> Counters:
    """What a graph costs."""
    found = list(kernels(graph))
    launches = [group for group in groups(graph) if len(group) > 1 or group[0].name not in VIEWS]
    arrays = set[str]().union(*(part for group in launches for part in read_and_written(graph, group)))
    results = [graph.shapes[node.outputs[0]] for node in graph.nodes if node.name in PRODUCTS]
    return Counters(
        kernels=len(found),
        bytes=sum(kernel.bytes for kernel in found),
        flops=sum(kernel.flops for kernel in found),
        casts=sum([node.name for node in group] == ["AsType"] for group in launches),
        repeats=sum(kernel.name == "Repeat" for kernel in found),
        float32=sum(graph.dtypes[name] == mx.float32 for name in arrays),
        output_rows=sum(math.prod(shape[:-1]) for shape in results if shape[-1] == config.text.vocab_size),
        names=dict(Counter(kernel.name for kernel in found).most_common()),
    )


def lazy_model(config: PaliGemmaConfig, dtype: mx.Dtype = mx.bfloat16) -> FusedPaliGemma:
    """A fused model whose weights are zeros that nobody computes."""
    with patch.object(mx, "eval", lambda *arrays: None):  # fusing would compute its weights
        model = PaliGemma(config)
        model.set_dtype(dtype)
        fused = fuse(model)
    fused.update(tree_map(lambda weight: mx.zeros(weight.shape, weight.dtype), fused.parameters()))
    fused.blocks = 1  # as on a GPU
    return fused


def decode_call(model: FusedPaliGemma, batch: int = 1, padded: bool = False) -> Call:
    """The step before it is compiled, and lazy arguments: the cache that a request gets, of which all columns are read."""

    def step(tokens: mx.array, offset: mx.array, keys: list[mx.array], values: list[mx.array], *padding: mx.array) -> Any:
        return model.step.plain(tokens, offset, padding[0] if padding else None, keys, values)

    cache = _cache(model, batch)
    keys, values = ([getattr(layer, name) for layer in cache.layers] for name in ("keys", "values"))
    tokens, offset = mx.zeros((batch, 1), mx.int32), mx.zeros(1, mx.int32)
    padding = [mx.zeros(batch, mx.int32)] if padded else []
    return _of_weights(model, step), model.parameters(), tokens, offset, keys, values, *padding


def prefill_call(model: FusedPaliGemma, batch: int = 1) -> Call:
    """From pixels and ids to the first logits and the filled cache, and lazy arguments."""

    def prefill(pixels: mx.array, ids: mx.array) -> Any:
        cache = _cache(model, batch)
        logits = model.prefill(ids, model.encode_images(pixels), cache)
        return [logits, [[layer.keys, layer.values] for layer in cache.layers]]

    side = model.config.vision.image_size
    pixels, ids = mx.zeros((batch, 1, side, side, 3)), mx.zeros((batch, _prompt(model.config)), mx.int32)
    return _of_weights(model, prefill), model.parameters(), pixels, ids


def _of_weights(model: FusedPaliGemma, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the model's weights as its first argument; afterwards the model has its own again."""

    def call(weights: Any, *args: Any) -> Any:
        own = model.parameters()
        model.update(weights)
        try:
            return function(*args)
        finally:
            model.update(own)

    return call


def _cache(model: FusedPaliGemma, batch: int) -> KVCache:
    dtype = model.language_model.norm.weight.dtype
    return KVCache(model.config.text, batch, capacity_for(_prompt(model.config) + NEW_TOKENS), dtype)


def _prompt(config: PaliGemmaConfig) -> int:
    return config.vision.num_patches + TEXT_TOKENS


HEADER = (
    "          pixels  rows |   decoding: kernels     GB/token   of needed  casts  repeats  float32"
    " |   prefill: TFLOP   of needed  output rows"
)


def _line(row: Row) -> str:
    decode, prefill = row.decode, row.prefill
    return (
        f"{row.size:9} {row.resolution:6} {row.batch:5} | {decode.kernels:19} {decode.bytes / 1e9:12.3f} {row.bytes_ratio:11.4f}"
        f" {decode.casts:6} {decode.repeats:8} {decode.float32:8} | {prefill.flops / 1e12:16.3f} {row.flops_ratio:11.4f}"
        f" {prefill.output_rows:12}"
    )


if __name__ == "__main__":
    typer.run(main)
