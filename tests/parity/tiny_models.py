"""Tiny PaliGemmas that leave no parameter and no rule without effect: their configs and weights.

transformers' own initialisation (0.02, norms 0, biases 0) would prove nothing: with it attention is uniform, a forgotten 1 + w
or bias goes unseen, and logits differ by less than rounding. `test_modules.py` asserts that these weights do better.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from checkpoints import IMAGE_TOKEN, ROWS, write

from mlx_paligemma import weights as mlx_weights
from mlx_paligemma.common.checkpoint import read_checkpoint
from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.common.mask_codec import FILE_NAME, MaskCodecConfig
from mlx_paligemma.common.processor import PaliGemmaProcessor
from mlx_paligemma.common.tokenizer import PaliGemmaTokenizer
from mlx_paligemma.model.paligemma import PaliGemma
from torch_ref import weights as torch_weights
from torch_ref.paligemma import PaliGemma as Reference

VISION = {"model_type": "siglip_vision_model", "hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 3,
          "num_attention_heads": 5, "image_size": 42, "patch_size": 14, "vision_use_head": False}  # fmt: skip
GEMMA = {"model_type": "gemma", "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 1, "head_dim": 20, "vocab_size": ROWS}  # fmt: skip
GEMMA2 = GEMMA | {"model_type": "gemma2", "num_hidden_layers": 4, "num_key_value_heads": 2, "query_pre_attn_scalar": 37,
                  "attn_logit_softcapping": 5.0, "final_logit_softcapping": 7.0, "sliding_window": 8}  # fmt: skip
TEXT = {1: GEMMA, 2: GEMMA2}


@dataclass(frozen=True)
class Pair:
    """One checkpoint folder, loaded by both backends."""

    folder: Path
    reference: Reference
    model: PaliGemma

    @property
    def config(self) -> PaliGemmaConfig:
        return self.reference.config

    @classmethod
    def load(cls, folder: Path) -> Pair:
        checkpoint = read_checkpoint(folder)
        return cls(folder, torch_weights.load_model(checkpoint), mlx_weights.load_model(checkpoint))

    def fresh_model(self) -> PaliGemma:
        """Another MLX model with the same weights, to be broken."""
        return mlx_weights.load_model(read_checkpoint(self.folder))

    def processor(self) -> PaliGemmaProcessor:
        return PaliGemmaProcessor(self.config, PaliGemmaTokenizer.from_folder(self.folder))


def config_json(generation: int, **text_changes) -> dict:
    """A config.json that transformers reads too."""
    text = TEXT[generation] | text_changes
    vision = VISION | {"projection_dim": text["hidden_size"]}
    return {"model_type": "paligemma", "architectures": ["PaliGemmaForConditionalGeneration"], "text_config": text,
            "vision_config": vision, "projection_dim": text["hidden_size"], "image_token_index": IMAGE_TOKEN, "bos_token_id": 2,
            "eos_token_id": 1, "pad_token_id": 0, "torch_dtype": "float32"}  # fmt: skip


def write_pair(folder: Path, config: dict, seed: int = 0, own_head: bool = False) -> Pair:
    """A checkpoint with random weights in the layout of the hub, read back by both real loaders."""
    config = deepcopy(config) | ({"tie_word_embeddings": False} if own_head else {})
    model = Reference(PaliGemmaConfig.from_dict(config))
    fill(model, seed)
    write(folder, model.state_dict(), data=config)
    return Pair.load(folder)


def fill(model: torch.nn.Module, seed: int) -> None:
    """Random weights under which every parameter, every epsilon and every soft cap shows."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean, std = _spread(name, parameter.shape)
            parameter.copy_(mean + std * torch.randn(parameter.shape, generator=draw))


def _spread(name: str, shape: torch.Size) -> tuple[float, float]:
    """Mean and standard deviation of a parameter. Activations stay well below 1, so that an epsilon of 1e-5 is not lost."""
    module = name.split(".")[-2]
    if name.endswith(".bias"):
        return 0.0, 0.1
    if module == "norm":  # 1 + w of both signs, or a tied head would answer every token with itself
        return -1.0, 2.5
    if module in ("post_attention_layernorm", "post_feedforward_layernorm"):
        return -0.5, 0.25
    if len(shape) == 1:
        return (1.0, 0.3) if "vision_tower" in name else (0.3, 0.4)
    if module in ("embed_tokens", "lm_head"):
        return 0.0, 0.06
    if module == "position_embedding":
        return 0.0, 0.2
    fan_in = int(np.prod(shape[1:]))
    gain = {"q_proj": 1.4, "k_proj": 1.4, "patch_embedding": 0.3, "linear": 0.4, "out_proj": 0.15, "fc2": 0.15, "o_proj": 0.4,
            "down_proj": 0.4}.get(module, 1.0)  # fmt: skip
    return 0.0, gain * fan_in**-0.5


def write_mask_codec(path: Path, config: MaskCodecConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """A random mask codec in the layout of the published file, and its arrays."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in config.shapes().items():
        std = 0.3 if len(shape) == 1 else (2 / np.prod(shape[1:])) ** 0.5
        if name == "_vq_vae._embedding":
            std = 1.0
        arrays[name] = (std * rng.standard_normal(shape)).astype(np.float32)
    np.savez(path / FILE_NAME, **arrays)
    return arrays
