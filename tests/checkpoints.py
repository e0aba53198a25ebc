"""Tiny checkpoints in every layout that is in use, and a tiny vocabulary: for the tests of everything around the model."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from functools import cache
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2 as pb

from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.common.safetensors_files import INDEX_NAME
from mlx_paligemma.common.tensors import EMBEDDING, HEAD, expected_shapes
from mlx_paligemma.common.tokenizer import LOC_TOKENS, SEG_TOKENS, PaliGemmaTokenizer

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
NEWLINES = ("\n", "\n\n", "\n\n\n")
BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
WORDS = ("caption", "▁en", "answer", "detect", "segment", "ocr", "▁cat", "▁dog", "▁star", "▁is", "▁it", "▁;", "▁a", "?", "é")
CHARACTERS = ("▁", *string.ascii_letters, *string.digits, *string.punctuation, "é", "ü")
NORMAL = tuple(dict.fromkeys(piece for word in WORDS for piece in accumulate(word) if len(piece) > 1)) + CHARACTERS
BASE = (*SPECIAL, *NEWLINES, *BYTES, *NORMAL)  # a plain Gemma vocabulary ends here
PIECES = (*BASE, *LOC_TOKENS, *SEG_TOKENS)
IMAGE_TOKEN = len(PIECES)
ROWS = -(-(IMAGE_TOKEN + 1) // 64) * 64  # of the embedding table

LAYOUTS = {  # what our prefixes are called in: files of the hub; transformers 4.52 to 4.57; 5.x; 5.x saved from scratch
    "hub": ("vision_tower.vision_model.", "multi_modal_projector.", "language_model.model.", "language_model.lm_head."),
    "4.52": ("model.vision_tower.vision_model.", "model.multi_modal_projector.", "model.language_model.", "lm_head."),
    "5.x": ("model.vision_tower.", "model.multi_modal_projector.", "model.language_model.", "lm_head."),
    "scratch": ("vision_tower.", "multi_modal_projector.", "language_model.model.", "language_model.lm_head."),
}
OURS = ("vision_tower.", "multi_modal_projector.", "language_model.", "lm_head.")
Tensors = dict[str, torch.Tensor]


@cache
def vocabulary(pieces: tuple[str, ...] = PIECES, **settings) -> bytes:
    """A SentencePiece model with Gemma's settings, save for those changed."""
    model = pb.ModelProto()
    for rank, piece in enumerate(pieces):
        model.pieces.add(piece=piece, type=_kind(piece), score=-float(rank))
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.byte_fallback, trainer.vocab_size = pb.TrainerSpec.BPE, True, len(pieces)
    trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id = 0, 1, 2, 3
    trainer.pad_piece, trainer.eos_piece, trainer.bos_piece, trainer.unk_piece = "<pad>", "<eos>", "<bos>", "<unk>"
    normalizer.name, normalizer.escape_whitespaces = "identity", True
    normalizer.add_dummy_prefix = normalizer.remove_extra_whitespaces = False
    for name, value in settings.items():
        setattr(normalizer, name, value)
    return model.SerializeToString()


def _kind(piece: str) -> int:
    kinds = pb.ModelProto.SentencePiece
    if piece in SPECIAL[:3]:
        return kinds.CONTROL
    if piece == "<unk>":
        return kinds.UNKNOWN
    if piece in BYTES:
        return kinds.BYTE
    return kinds.USER_DEFINED if piece in ("<mask>", *NEWLINES, *LOC_TOKENS, *SEG_TOKENS) else kinds.NORMAL


def tokenizer() -> PaliGemmaTokenizer:
    return PaliGemmaTokenizer(vocabulary())


def config_json(model_type: str = "gemma", text: Mapping = {}, vision: Mapping = {}, **top) -> dict:
    """A config.json: 28 pixels, 4 image tokens, two layers of everything."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = sizes | {"model_type": model_type, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": ROWS} | dict(text)
    vision = (
        sizes | {"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14, "vision_use_head": False} | dict(vision)
    )
    return {"model_type": "paligemma", "text_config": text, "vision_config": vision, "projection_dim": 16,
            "image_token_index": IMAGE_TOKEN} | top  # fmt: skip


def config(**changes) -> PaliGemmaConfig:
    return PaliGemmaConfig.from_dict(config_json(**changes))


def tensors(data: Mapping | None = None, head: bool = False, dtype: torch.dtype = torch.float32) -> Tensors:
    """Random weights by our names, in PyTorch layout. The head differs from the embedding."""
    rng = np.random.default_rng(0)
    shapes = expected_shapes(PaliGemmaConfig.from_dict(data or config_json()))
    shapes |= {HEAD: shapes[EMBEDDING]} if head else {}
    return {name: torch.from_numpy(rng.normal(0, 0.3, shape).astype(np.float32)).to(dtype) for name, shape in shapes.items()}


def in_layout(name: str, layout: str) -> str:
    """What a tensor of ours is called in a layout."""
    ours, theirs = next(pair for pair in zip(OURS, LAYOUTS[layout], strict=True) if name.startswith(pair[0]))
    return theirs + name.removeprefix(ours)


def write(
    folder: Path,
    weights: Tensors | None = None,
    *,
    data: Mapping | None = None,
    layout: str = "hub",
    shards: int = 1,
    index: bool = True,
) -> Path:
    """A checkpoint folder, complete with its vocabulary; `index` matters where there is more than one shard."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(data or config_json()))
    (folder / "tokenizer.model").write_bytes(vocabulary())
    named = {in_layout(name, layout): tensor for name, tensor in (tensors(data) if weights is None else weights).items()}
    if shards == 1:
        save_file(named, folder / "model.safetensors")
        return folder
    names = list(named)
    files = {f"model-{i + 1:05d}-of-{shards:05d}.safetensors": names[i::shards] for i in range(shards)}
    for file, keys in files.items():
        save_file({key: named[key] for key in keys}, folder / file)
    if index:
        weight_map = {key: file for file, keys in files.items() for key in keys}
        (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
