"""The released models' sizes, and a tiny one in their shape. Needs neither MLX nor torch.

Papers: PaliGemma, arXiv:2407.07726, table 1; PaliGemma 2, arXiv:2412.03555, table 1. The picture encoder is SigLIP So400m/14
in all of them; what a text config leaves out has the defaults of `common/config.py`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from .common.config import PaliGemmaConfig
from .common.errors import OptionError

PATCH = 14  # pixels


class Size(StrEnum):
    """A model by family and name; "tiny" has every part of PaliGemma 2 and a few megabytes."""

    pg1_3b = "pg1-3b"
    pg2_3b = "pg2-3b"
    pg2_10b = "pg2-10b"
    pg2_28b = "pg2-28b"
    tiny = "tiny"


def published_config(size: str, resolution: int = 224) -> PaliGemmaConfig:
    """The config of a size for pictures of `resolution` pixels (released: 224, 448 and 896).

    Raises:
        OptionError: there is no such size, or patches of 14 pixels do not fill the picture.
    """
    if size not in list(Size):
        raise OptionError(f"there is no size {size!r}; choose one of {', '.join(Size)}")
    if resolution < PATCH or resolution % PATCH:
        raise OptionError(f"{resolution} pixels is not a multiple of {PATCH}; the released models take 224, 448 or 896")
    vision = (_TINY_VISION if size == Size.tiny else {}) | {"image_size": resolution}
    special = {"image_token_index": _TINY_TEXT["vocab_size"] - 1} if size == Size.tiny else {}
    data = {"model_type": "paligemma", "text_config": _text(Size(size)), "vision_config": vision}
    return PaliGemmaConfig.from_dict(data | special)


def _text(size: Size) -> dict[str, Any]:
    """A text config, as the released files write it."""
    rows = {
        Size.pg1_3b: ("gemma", 2048, 16384, 18, 8, 1),
        Size.pg2_3b: ("gemma2", 2304, 9216, 26, 8, 4),
        Size.pg2_10b: ("gemma2", 3584, 14336, 42, 16, 8),
        Size.pg2_28b: ("gemma2", 4608, 36864, 46, 32, 16),
    }
    if size == Size.tiny:
        return _TINY_TEXT
    names = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return dict(zip(names, rows[size], strict=True))


_TINY_TEXT: dict[str, Any] = {
    "model_type": "gemma2", "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 2048, "query_pre_attn_scalar": 32,
}  # fmt: skip
_TINY_VISION: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
