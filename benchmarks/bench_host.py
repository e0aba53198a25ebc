"""Host time to build one decoding step, ours and mlx-vlm's, in one process: prints one JSON line.

Run in mlx-vlm's environment with this repository on PYTHONPATH. The models have the released depths and are narrow, so that
building the graph is all that is timed; what is built is computed after the clock has stopped. MLX's fused operations are one
node each on a GPU and many on the CPU, and our step is compiled on a GPU alone: so both sides are timed with stand-ins of one
node, ours compiled, which is how they are on a GPU, and then as they are on this device.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import mlx.core as mx

from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.decode_step import DecodeStep, Decoding, capacity_for
from mlx_paligemma.fusion import fuse
from mlx_paligemma.model.kv_cache import KVCache
from mlx_paligemma.model.paligemma import PaliGemma

STEPS, ROUNDS, PREFIX = 50, 4, 256  # steps timed at a time, times, and tokens in the cache before
NARROW = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 8, "vocab_size": 256, "num_attention_heads": 8}
DEPTHS = {
    "pg1-3b": NARROW | {"model_type": "gemma", "num_hidden_layers": 18, "num_key_value_heads": 1},
    "pg2-3b": NARROW | {"model_type": "gemma2", "num_hidden_layers": 26, "num_key_value_heads": 4, "query_pre_attn_scalar": 8},
}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
Step = Callable[[mx.array], mx.array]  # token int [1, 1] -> logits, not computed yet


def ours(text: dict[str, Any], compiled: bool | None) -> Step:
    """The step of a fused model with a filled cache; `compiled` None: where this device's are."""
    data = {"model_type": "paligemma", "text_config": text, "vision_config": VISION, "image_token_index": 255}
    model = fuse(PaliGemma(PaliGemmaConfig.from_dict(data)))
    mx.eval(model.parameters())
    cache = KVCache(model.config.text, 1, capacity_for(PREFIX + STEPS * ROUNDS + 2), mx.float32)
    mx.eval(model.language_model(mx.zeros((1, PREFIX, text["hidden_size"])), None, None, cache))
    return Decoding(DecodeStep(model, compiled), cache)


def mlx_vlm(text: dict[str, Any]) -> Step:
    """Its LanguageModel with its own cache."""
    from mlx_vlm.models.cache import make_prompt_cache
    from mlx_vlm.models.paligemma.config import TextConfig
    from mlx_vlm.models.paligemma.language import LanguageModel

    caps = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 8}
    model = LanguageModel(TextConfig.from_dict(text | caps | {"use_bidirectional_attention": True}))
    mx.eval(model.parameters())
    caches = make_prompt_cache(model)
    mx.eval(model(mx.zeros((1, PREFIX), dtype=mx.int32), cache=caches).logits)
    return lambda token: model(token, cache=caches).logits


@contextmanager
def one_node_each() -> Iterator[None]:
    """Stand-ins for MLX's fused operations: right shapes, wrong values."""
    kept = {name: getattr(mx.fast, name) for name in ("rms_norm", "rope", "scaled_dot_product_attention")}
    mx.fast.rms_norm = lambda x, weight, eps: mx.multiply(x, weight)
    mx.fast.rope = lambda x, dims, **_: mx.square(x)
    mx.fast.scaled_dot_product_attention = lambda q, k, v, **_: mx.square(q)
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(mx.fast, name, function)


def seconds(step: Step) -> list[float]:
    """Of STEPS steps, each from its token to the logits promised."""
    times = []
    for _ in range(STEPS):
        token = mx.array([[7]])
        started = time.perf_counter()
        logits = step(token)
        times.append(time.perf_counter() - started)
        mx.eval(logits)
    return times


def compared(text: dict[str, Any], compiled: bool | None = None) -> dict[str, float]:
    """Medians in milliseconds, and their ratio, of rounds in turn."""
    sides = {"ours_ms": ours(text, compiled), "mlx_vlm_ms": mlx_vlm(text)}
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(ROUNDS):
        for name in sides if number % 2 == 0 else reversed(sides):
            found[name] += seconds(sides[name])[1:]  # the first of all may compile
    medians = {name: 1e3 * median(times) for name, times in found.items()}
    return medians | {"ratio": medians["ours_ms"] / medians["mlx_vlm_ms"]}


def main() -> None:
    """Both depths, both ways."""
    found = {}
    for size, text in DEPTHS.items():
        with one_node_each():
            found[size] = {"as_on_a_gpu": compared(text, compiled=True)}
        found[size]["as_on_this_device"] = compared(text)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
