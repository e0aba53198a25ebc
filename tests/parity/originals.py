"""transformers' own PaliGemma as the third network: loading it, and handing it our batches.

token_type_ids and attention_mask are always given and attention is eager: without them transformers' result depends on the
attention implementation, and Gemma 2 becomes causal in its prefix.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import IMAGE_TOKEN
from PIL import Image

from mlx_paligemma.common.processor import ModelInputs

from .tiny_models import Pair

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

PROMPTS = ["detect cat", "answer en what is in it?", "segment cat ; dog"]


def picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (*rng.integers(20, 90, 2), 3), dtype=np.uint8))


PICTURES = [[picture(0)], [picture(1), picture(2)], [picture(3)]]


def original(folder: Path):
    model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, local_files_only=True
    )
    return model.eval()


def arguments(inputs: ModelInputs, patches: int) -> dict[str, torch.Tensor]:
    """A batch as transformers takes it: pictures of all rows in one list, without the fillers of ragged rows."""
    pictures = (inputs.input_ids == IMAGE_TOKEN).sum(1) // patches
    pixels = np.concatenate([row[:count] for row, count in zip(inputs.pixel_values, pictures, strict=True)])
    ids, seen, types = (
        torch.from_numpy(array).long() for array in (inputs.input_ids, inputs.attention_mask, inputs.token_type_ids)
    )
    pixels = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    return {"input_ids": ids, "pixel_values": pixels, "attention_mask": seen, "token_type_ids": types}


def original_logits(model, inputs: ModelInputs, pair: Pair) -> np.ndarray:
    with torch.no_grad():
        return model(**arguments(inputs, pair.config.vision.num_patches)).logits.numpy()


def original_decoded(model, prompts: ModelInputs, suffix: np.ndarray, pair: Pair) -> np.ndarray:
    """transformers' logits after the prompt and each suffix token, step by step as `generate` does it."""
    given = arguments(prompts, pair.config.vision.num_patches)
    seen = given["attention_mask"]
    with torch.no_grad():
        out = model(**given, use_cache=True)
        parts = [out.logits[:, -1:]]
        for token in torch.from_numpy(suffix).long().split(1, dim=1):
            seen = torch.cat([seen, torch.ones_like(token)], dim=1)
            out = model(input_ids=token, attention_mask=seen, past_key_values=out.past_key_values, use_cache=True)
            parts.append(out.logits)
    return torch.cat(parts, dim=1).numpy()
