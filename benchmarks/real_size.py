"""Random checkpoints of PaliGemma's true sizes: written in shards, loaded strictly, run in both backends, compared.

Usage: python benchmarks/real_size.py [--family pg1-3b|pg2-3b] [--keep FOLDER]
Needs 24 GB of memory and 7 GB of disk. No tokenizer is needed: the prompt is made of ids. One backend runs at a time, each
in a process of its own, in float32; the last line is one JSON object. On Linux MLX's bundled BLAS is slow; preload
OpenBLAS for it with --openblas /usr/lib/x86_64-linux-gnu/openblas-pthread/libopenblas.so.0.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from mlx_paligemma.common.checkpoint import read_checkpoint
from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.common.safetensors_files import INDEX_NAME
from mlx_paligemma.common.tensors import expected_shapes

LIMIT = 5e-5  # largest difference of logits at real widths, relative to the largest logit
SHARD_BYTES = 2_000_000_000
TOKENS = 3
VISION = {"model_type": "siglip_vision_model", "projection_dim": 2048}
TEXTS = {
    "pg1-3b": {
        "model_type": "gemma", "hidden_size": 2048, "intermediate_size": 16384, "num_attention_heads": 8,
        "num_hidden_layers": 18, "num_key_value_heads": 1,
    },
    "pg2-3b": {
        "model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
    },
}  # fmt: skip


class Family(StrEnum):
    """Which model to make."""

    pg1_3b = "pg1-3b"
    pg2_3b = "pg2-3b"


def main(
    family: Annotated[list[Family] | None, typer.Option(help="Left out: both.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Folder for the checkpoints; left out: a temporary one.")] = None,
    openblas: Annotated[Path | None, typer.Option(help="BLAS library to preload for MLX.")] = None,
) -> None:
    """Write, load, run and compare."""
    failed = False
    for name in family or list(Family):
        with tempfile.TemporaryDirectory(dir=keep) as scratch:
            folder = Path(scratch)
            started = time.perf_counter()
            write_checkpoint(folder, name.value)
            written = time.perf_counter() - started
            results = {backend: _in_process(backend, folder, openblas) for backend in ("mlx", "torch")}
            logits = {backend: np.load(folder / f"{backend}.npy") for backend in results}
        error = float(np.abs(logits["mlx"] - logits["torch"]).max() / np.abs(logits["torch"]).max())
        same = results["mlx"]["tokens"] == results["torch"]["tokens"]
        passed = same and error <= LIMIT
        failed |= not passed
        spread = float(logits["torch"].std())
        summary = {
            "family": name.value,
            "write_s": round(written, 1),
            "rows": logits["torch"].shape[-1],
            "logits_std": round(spread, 3),
        }
        print(json.dumps(summary | {"relative_error": error, "same_tokens": same, "passed": passed} | results), flush=True)
    raise typer.Exit(int(failed))


def write_checkpoint(folder: Path, family: str) -> None:
    """A sharded bfloat16 checkpoint in the hub's first layout, with weights that all matter."""
    import torch
    from safetensors.torch import save_file

    vision = VISION | {"projection_dim": TEXTS[family]["hidden_size"]}
    data = {"model_type": "paligemma", "torch_dtype": "bfloat16", "text_config": TEXTS[family], "vision_config": vision}
    (folder / "config.json").write_text(json.dumps(data))
    generator = torch.Generator().manual_seed(0)
    weight_map = {}
    for number, shard in enumerate(_shards(expected_shapes(PaliGemmaConfig.from_dict(data))), start=1):
        file = f"model-{number:05d}.safetensors"
        save_file({_hub_name(name): _random(name, shape, generator) for name, shape in shard.items()}, folder / file)
        weight_map |= {_hub_name(name): file for name in shard}
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _shards(shapes: dict[str, tuple[int, ...]]) -> Iterator[dict[str, tuple[int, ...]]]:
    shard: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if shard and 2 * sum(map(np.prod, [*shard.values(), shape])) > SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = shape
    yield shard


def _random(name: str, shape: tuple[int, ...], generator):  # noqa: ANN001, ANN202 - torch is imported late
    import torch

    values = torch.randn(shape, generator=generator, dtype=torch.float32)
    if len(shape) == 1:
        offset = 1.0 if "vision_tower" in name and "norm" in name and name.endswith("weight") else 0.0
        values = offset + 0.2 * values
    elif "embed" in name:
        values *= 0.03
    else:
        values *= float(np.prod(shape[1:])) ** -0.5
    return values.to(torch.bfloat16)


def _hub_name(name: str) -> str:
    tower, text = "vision_tower.", "language_model."
    if name.startswith(tower):
        return f"{tower}vision_model.{name.removeprefix(tower)}"
    return f"{text}model.{name.removeprefix(text)}" if name.startswith(text) else name


def _in_process(backend: str, folder: Path, openblas: Path | None) -> dict:
    environment = os.environ | {"MLX_ENABLE_TF32": "0"}
    if backend == "mlx" and openblas is not None:
        environment["LD_PRELOAD"] = str(openblas)
    code = f"from real_size import run; run({backend!r}, {str(folder)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment, cwd=Path(__file__).parent
    )
    return json.loads(done.stdout.splitlines()[-1])


def run(backend: str, folder: str) -> None:
    """In a process of its own: load, prefill, decode greedily; save the prefill's logits and print the costs."""
    started = time.perf_counter()
    checkpoint = read_checkpoint(Path(folder))
    steps = (_mlx_steps if backend == "mlx" else _torch_steps)(checkpoint)
    loaded = next(steps)
    tokens, times = [], []
    for logits in steps:
        times.append(time.perf_counter())
        if not tokens:
            np.save(Path(folder) / f"{backend}.npy", logits)
        tokens.append(int(logits.argmax()))
    unit = 1 if sys.platform == "darwin" else 1024
    costs = {
        "load_s": round(loaded - started, 1),
        "prefill_s": round(times[0] - loaded, 1),
        "decode_s_per_token": round((times[-1] - times[0]) / (len(times) - 1), 2),
        "process_peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2),
    }
    print(json.dumps(costs | {"tokens": tokens}))


def _prompt(config: PaliGemmaConfig) -> tuple[np.ndarray, np.ndarray]:
    """Ids of image tokens, bos, "caption en" and newline, and a picture of noise."""
    ids = [config.image_token_index] * config.vision.num_patches + [2, 21209, 659, 108]
    size = config.vision.image_size
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 1, size, size, 3)).astype(np.float32)
    return np.array([ids], dtype=np.int32), pixels


def _mlx_steps(checkpoint):  # noqa: ANN001, ANN202
    """The time when loading was done, then logits [V] of each step."""
    import mlx.core as mx

    from mlx_paligemma.model.kv_cache import KVCache
    from mlx_paligemma.weights import load_model

    model = load_model(checkpoint, "float32")
    ids, pixels = _prompt(model.config)
    yield time.perf_counter()
    cache = KVCache(model.config.text, 1, ids.shape[1] + TOKENS, mx.float32)
    logits = np.array(model.prefill(mx.array(ids), model.encode_images(mx.array(pixels)), cache))[0, -1]
    yield logits
    for _ in range(TOKENS - 1):
        logits = np.array(model.decode(mx.array([[int(logits.argmax())]]), cache))[0, -1]
        yield logits


def _torch_steps(checkpoint):  # noqa: ANN001, ANN202
    """The time when loading was done, then logits [V] of each step."""
    import torch

    from torch_ref.kv_cache import KVCache
    from torch_ref.weights import load_model

    with torch.inference_mode():
        model = load_model(checkpoint, "float32")
        ids, pixels = _prompt(model.config)
        yield time.perf_counter()
        cache = KVCache(model.config.text, 1, ids.shape[1] + TOKENS, torch.float32)
        logits = model.prefill(torch.from_numpy(ids), model.encode_images(torch.from_numpy(pixels)), cache)[0, -1].numpy()
        yield logits
        for _ in range(TOKENS - 1):
            logits = model.decode(torch.tensor([[int(logits.argmax())]]), cache)[0, -1].numpy()
            yield logits


if __name__ == "__main__":
    typer.run(main)
