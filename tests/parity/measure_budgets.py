"""Measure what mlx_paligemma/parity/budgets.py is made of: the largest errors over seeds, widths and lengths. Run by hand.

Usage, from the folder tests: python -m parity.measure_budgets [narrow|demo|wide|published]...
Default: all; the published widths take minutes.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

os.environ["MLX_ENABLE_TF32"] = "0"

from mlx_paligemma import weights as mlx_weights
from mlx_paligemma.common.checkpoint import read_checkpoint
from mlx_paligemma.common.hub import bundled_checkpoint
from mlx_paligemma.common.mask_codec import MaskCodecConfig
from mlx_paligemma.parity.budgets import FROM_PIXELS, stage_of
from mlx_paligemma.parity.call_store import CallStore
from mlx_paligemma.parity.end_to_end import run_end_to_end
from mlx_paligemma.parity.replay import compare_each
from mlx_paligemma.parity.scenes import Scenes
from mlx_paligemma.parity.torch_reference import TorchReference

from .batches import random_inputs, random_suffix
from .tiny_models import config_json, write_mask_codec, write_pair

DTYPES = ("float32", "bfloat16", "float16")
LENGTHS = (((12, 9), (9, 4)), ((3, 40), (30, 5)))  # prefixes, suffixes
NARROW = ({}, {"hidden_size": 96, "intermediate_size": 320})
MIDDLE = {"hidden_size": 384, "intermediate_size": 1024, "head_dim": 64}
WIDE = {
    1: {"hidden_size": 2048, "intermediate_size": 16384, "num_attention_heads": 8, "head_dim": 256, "num_hidden_layers": 1},
    2: {"hidden_size": 2304, "intermediate_size": 9216, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "query_pre_attn_scalar": 256, "num_hidden_layers": 2},
}  # fmt: skip
VISION = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 1}


def checkpoints(kind: str, scratch: Path) -> Iterator[Path]:
    """Folders of random checkpoints."""
    if kind == "demo":
        yield bundled_checkpoint()
        return
    shapes = [(g, text, {}) for g in (1, 2) for text in (NARROW if kind == "narrow" else (MIDDLE,))]
    if kind == "published":
        shapes = [(g, WIDE[g], VISION) for g in (1, 2)]
    for seed in range(1 if kind == "published" else 4):
        for index, (generation, text, vision) in enumerate(shapes):
            config = config_json(generation, **text)
            config["vision_config"] |= vision
            folder = scratch / f"{seed}-{index}"
            write_pair(folder, config, seed)
            write_mask_codec(folder, MaskCodecConfig((4, 6, 8, 10), embedding_dim=12), seed)
            yield folder


def measure(folder: Path, largest: dict[tuple[str, str], tuple[float, str]]) -> None:
    """Raise the entries of `largest` to what this checkpoint shows."""
    reference = TorchReference(read_checkpoint(folder))
    config = reference.model.config
    for seed, (prefixes, suffixes) in enumerate(LENGTHS):
        batch = random_inputs(config, prefixes, suffixes, seed=seed)
        prompts = random_inputs(config, prefixes, seed=seed)
        with CallStore.temporary() as store:
            reference.record(Scenes((), prompts, batch, prompts, random_suffix(2, 5)), store)
            for dtype in DTYPES:
                model = mlx_weights.load_model(read_checkpoint(folder), dtype)
                codec = mlx_weights.load_mask_codec(folder / "vae-oid.npz")
                for found in compare_each(store, model, codec):
                    note(largest, dtype, stage_of(found.name), found.relative_error, found.name)
                _, logits = run_end_to_end(model, batch, store, dtype)
                note(largest, dtype, FROM_PIXELS, logits.distance.relative_error, str(folder.name))


def note(largest: dict[tuple[str, str], tuple[float, str]], dtype: str, stage: str, error: float, name: str) -> None:
    """Keep the larger."""
    largest[dtype, stage] = max(largest.get((dtype, stage), (0.0, "")), (float(np.nan_to_num(error, nan=np.inf)), name))


def main() -> None:
    """Print the table of each kind of checkpoint, as it grows."""
    torch.set_num_threads(1)
    for kind in sys.argv[1:] or ("narrow", "demo", "wide", "published"):
        largest: dict[tuple[str, str], tuple[float, str]] = {}
        with tempfile.TemporaryDirectory() as scratch:
            for count, folder in enumerate(checkpoints(kind, Path(scratch)), start=1):
                measure(folder, largest)
                print(f"after {count} checkpoints", flush=True)
                for (dtype, stage), (error, name) in sorted(largest.items()):
                    print(f"{kind:8} {dtype:9} {stage:12} {error:.1e}  {name}", flush=True)


if __name__ == "__main__":
    main()
