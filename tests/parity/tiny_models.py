"""Tiny PaliGemmas that leave no parameter and no rule without effect: their configs, weights, vocabulary and inputs.

transformers' own initialisation (0.02, norms 0, biases 0) would prove nothing: with it attention is uniform, a forgotten 1 + w
or bias goes unseen, and logits differ by less than rounding. `test_modules.py` asserts that these weights do better.
"""

from __future__ import annotations

import json
import string
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2 as pb

from mlx_paligemma import weights as mlx_weights
from mlx_paligemma.common.checkpoint import read_checkpoint
from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.common.mask_codec import FILE_NAME, MaskCodecConfig
from mlx_paligemma.common.processor import IGNORED, ModelInputs, PaliGemmaProcessor
from mlx_paligemma.common.tokenizer import LOC_TOKENS, SEG_TOKENS, PaliGemmaTokenizer
from mlx_paligemma.model.paligemma import PaliGemma
from torch_ref import weights as torch_weights
from torch_ref.paligemma import PaliGemma as Reference

WORDS = ("▁c", "ca", "cat", "▁cat", "de", "te", "▁de", "dete", "en", "▁en", "▁i", "▁is", "wh", "▁a", "in", "er")
CHARACTERS = ("▁", *string.ascii_letters, *string.digits, *".,;:?!'\"()-/é")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
PIECES = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\n", "\n\n", *BYTES, *WORDS, *CHARACTERS, *LOC_TOKENS, *SEG_TOKENS)
IMAGE_TOKEN = len(PIECES)  # outside the vocabulary, inside the table, as in the published files
VOCAB_SIZE = -(-(IMAGE_TOKEN + 1) // 64) * 64

VISION = {"model_type": "siglip_vision_model", "hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 3,
          "num_attention_heads": 5, "image_size": 42, "patch_size": 14, "vision_use_head": False}  # fmt: skip
GEMMA = {"model_type": "gemma", "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 1, "head_dim": 20, "vocab_size": VOCAB_SIZE}  # fmt: skip
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
    """A checkpoint with random weights and a vocabulary in `folder`, read back by both real loaders."""
    config = deepcopy(config) | ({"tie_word_embeddings": False} if own_head else {})
    model = Reference(PaliGemmaConfig.from_dict(config))
    fill(model, seed)
    write_checkpoint(folder, config, model.state_dict())
    return Pair.load(folder)


def write_checkpoint(folder: Path, config: dict, state: dict[str, torch.Tensor]) -> None:
    """A folder with the names that the published files have."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(vocabulary())
    save_file({legacy_name(name): tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")


def legacy_name(name: str) -> str:
    """Our name of a tensor to the one in files of the hub."""
    if name == "lm_head.weight":
        return "language_model.lm_head.weight"
    for ours, theirs in (("vision_tower.", "vision_tower.vision_model."), ("language_model.", "language_model.model.")):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


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
        return 0.0, 0.15
    if module == "norm":  # 1 + w of both signs, or a tied head would answer every token with itself
        return -1.0, 2.5
    if module in ("post_attention_layernorm", "post_feedforward_layernorm") and "pre_feedforward" not in name:
        return -0.5, 0.25
    if len(shape) == 1:
        return (1.0, 0.3) if "vision_tower" in name else (0.3, 0.4)
    if module in ("embed_tokens", "lm_head"):
        return 0.0, 0.06
    if module == "position_embedding":
        return 0.0, 0.2
    fan_in = int(np.prod(shape[1:]))
    gain = {"q_proj": 1.6, "k_proj": 1.6, "patch_embedding": 0.3, "linear": 0.4, "out_proj": 0.25, "fc2": 0.25, "o_proj": 0.4,
            "down_proj": 0.4}.get(module, 1.0)  # fmt: skip
    return 0.0, gain * fan_in**-0.5


def vocabulary() -> bytes:
    """A SentencePiece model in the manner of PaliGemma's: BPE with byte fallback, nothing normalised, loc and seg at the end."""
    kinds = pb.ModelProto.SentencePiece
    model = pb.ModelProto()
    for rank, text in enumerate(PIECES):
        kind = kinds.NORMAL
        if text in ("<pad>", "<eos>", "<bos>"):
            kind = kinds.CONTROL
        elif text == "<unk>":
            kind = kinds.UNKNOWN
        elif text in BYTES:
            kind = kinds.BYTE
        elif text.strip() == "" or text in ("<mask>", *LOC_TOKENS, *SEG_TOKENS):
            kind = kinds.USER_DEFINED
        model.pieces.add(piece=text, score=-float(rank), type=kind)
    spec = model.trainer_spec
    spec.model_type, spec.byte_fallback, spec.vocab_size = pb.TrainerSpec.BPE, True, len(PIECES)
    spec.pad_id, spec.eos_id, spec.bos_id, spec.unk_id = 0, 1, 2, 3
    spec.pad_piece, spec.eos_piece, spec.bos_piece, spec.unk_piece = "<pad>", "<eos>", "<bos>", "<unk>"
    normal = model.normalizer_spec
    normal.name, normal.add_dummy_prefix, normal.remove_extra_whitespaces, normal.escape_whitespaces = "identity", False, False, True
    return model.SerializeToString()


def random_inputs(
    config: PaliGemmaConfig, prefixes: tuple[int, ...], suffixes: tuple[int, ...] | None = None, pictures: tuple[int, ...] = (), seed=0
) -> ModelInputs:
    """A batch of random pictures and tokens: text tokens of each prefix and suffix, and pictures of each row (default 1)."""
    rng = np.random.default_rng(seed)
    pictures = pictures or (1,) * len(prefixes)
    heads = [count * config.vision.num_patches + text for count, text in zip(pictures, prefixes, strict=True)]
    lengths = np.array(heads) + np.array(suffixes or [0] * len(heads))
    ids = rng.integers(3, IMAGE_TOKEN, (len(heads), lengths.max())).astype(np.int32)
    padding = (lengths.max() - lengths).astype(np.int32)
    labels = np.full_like(ids, IGNORED)
    for row, (left, count, head) in enumerate(zip(padding, pictures, heads, strict=True)):
        ids[row, :left] = config.pad_token_id
        ids[row, left : left + count * config.vision.num_patches] = config.image_token_index
        labels[row, left + head :] = ids[row, left + head :]
    size = config.vision.image_size
    pixels = rng.uniform(-1, 1, (len(heads), max(pictures), size, size, 3)).astype(np.float32)
    return ModelInputs(
        ids,
        pixels,
        padding if padding.any() else None,
        None if suffixes is None else np.array(heads, dtype=np.int32),
        None if suffixes is None else labels,
    )


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
