"""What every arm is asked: pictures of noise and prompts of ordinary ids, without a tokenizer. Needs neither MLX nor torch."""

from __future__ import annotations

import numpy as np

from ..common.config import PaliGemmaConfig
from ..common.decoding import Request
from ..common.processor import ModelInputs
from ..common.sampling import SamplingOptions
from ..common.tokenizer import LOC_TOKENS, SEG_TOKENS


def random_inputs(config: PaliGemmaConfig, prompt_tokens: int, batch: int = 1) -> ModelInputs:
    """Another picture and another prompt in every row, and the same ones at every call."""
    rng = np.random.default_rng(0)
    ids = rng.integers(3, first_loc(config), (batch, config.vision.num_patches + prompt_tokens), dtype=np.int32)
    ids[:, : config.vision.num_patches] = config.image_token_index
    ids[:, config.vision.num_patches] = config.bos_token_id
    size = config.vision.image_size
    return ModelInputs(ids, rng.uniform(-1, 1, (batch, 1, size, size, 3)).astype(np.float32))


def greedy_request(config: PaliGemmaConfig, inputs: ModelInputs, tokens: int) -> Request:
    """For so many tokens in every row. Nothing ends it early: eos is a token like any other here."""
    return Request(inputs, SamplingOptions(max_tokens=tokens, grammar=False), first_loc(config), None)


def first_loc(config: PaliGemmaConfig) -> int:
    """Id of <loc0000>: in every PaliGemma vocabulary the loc and seg tokens stand right before <image>."""
    return config.image_token_index - len(LOC_TOKENS) - len(SEG_TOKENS)
