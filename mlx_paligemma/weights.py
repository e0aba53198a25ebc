"""Reading a checkpoint into the MLX model: strict, one tensor at a time. Twin of torch_ref/weights.py."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .common.checkpoint import Checkpoint, check_dtype, read_checkpoint
from .common.hub import find_folder
from .common.locations import MaskDecoder, MaskEncoder
from .common.mask_codec import FILE_NAME, read_mask_codec
from .common.processor import PaliGemmaProcessor
from .common.tensors import HEAD, POSITIONS, WEIGHT
from .common.tokenizer import PaliGemmaTokenizer
from .fusion import fuse
from .memory import check_model, small_cache
from .model.mask_decoder import MaskCodec
from .model.paligemma import PaliGemma
from .packed_layers import pack_modules
from .tensor_reader import Tensors, is_tied, read_tensors


def load(
    model: str | Path | None = None, *, dtype: str | None = None, fused: bool = True, revision: str | None = None
) -> tuple[PaliGemma, PaliGemmaProcessor]:
    """Load a checkpoint for inference.

    Args:
        model: a folder or a Hub id; None for the bundled demo.
        dtype: "float32", "bfloat16" or "float16" to compute in; None: as stored (the bundled demo: float32).
        fused: rewritten for speed (see fusion.py), with the same results; False: module by module like the checkpoint, which
            training and comparisons need.
        revision: branch, tag or commit on the Hub.

    Raises:
        CheckpointError: something is missing, damaged, or does not belong together.
        OptionError: the dtype is unknown.
        TooLargeError: there is not the memory for it; nothing has been read then.
    """
    checkpoint = read_checkpoint(find_folder(model, revision))
    tokenizer = PaliGemmaTokenizer.from_folder(checkpoint.folder)
    network = load_model(checkpoint, dtype or ("float32" if model is None else None))
    with small_cache(network.config):
        network = fuse(network) if fused else network
    return network, PaliGemmaProcessor(network.config, tokenizer, *mask_functions(checkpoint.folder))


def load_model(checkpoint: Checkpoint, dtype: str | None = None) -> PaliGemma:
    """The network with its weights in `dtype` (None: as stored), all in memory. Needs no tokenizer.

    Raises:
        OptionError: the dtype is unknown.
        TooLargeError: there is not the memory for it; nothing has been read then.
    """
    target = check_dtype(dtype or checkpoint.dtype)
    check_model(checkpoint, target)
    weights: Tensors = {}
    with small_cache(checkpoint.config):
        for tensors in read_tensors(checkpoint, getattr(mx, target)):
            if HEAD not in tensors or not is_tied(tensors, weights):  # else it goes before the others come
                weights |= tensors
    packings = {path: packing for path, packing in checkpoint.packings.items() if path != POSITIONS and path + WEIGHT in weights}
    model = PaliGemma(replace(checkpoint.config, tie_word_embeddings=HEAD not in weights))
    pack_modules(model, packings, getattr(mx, target))
    model.load_weights(list(weights.items()), strict=True)
    model.eval()
    return model


def mask_functions(folder: Path) -> tuple[MaskDecoder, MaskEncoder] | tuple[None, None]:
    """Decoder and encoder of the folder's mask codec, which is read on first use; None where the folder has none."""
    path = folder / FILE_NAME
    return _lazy_functions(path) if path.exists() else (None, None)


def load_mask_codec(path: Path) -> MaskCodec:
    """The mask codec in a file. Raises CheckpointError when an array is missing or of another shape."""
    config, arrays = read_mask_codec(path)
    codec = MaskCodec(config)
    transposed = {f"{name}.weight" for name, module in codec.named_modules() if isinstance(module, nn.ConvTranspose2d)}
    codec.load_weights([(name, _channels_last(array, name in transposed)) for name, array in arrays.items()], strict=True)
    mx.eval(codec.parameters())
    return codec


def _lazy_functions(path: Path) -> tuple[MaskDecoder, MaskEncoder]:
    @cache
    def codec() -> MaskCodec:
        return load_mask_codec(path)

    def decode(codes: np.ndarray) -> np.ndarray:
        return np.array(codec().decode(mx.array(codes))[..., 0])

    def encode(masks: np.ndarray) -> np.ndarray:
        return np.array(codec().encode(mx.array(masks)[..., None]))

    return decode, encode


def _channels_last(array: np.ndarray, transposed: bool) -> mx.array:
    """A kernel from PyTorch's layout ([out, in, h, w], or [in, out, h, w] if transposed) to MLX's [out, h, w, in]."""
    if array.ndim < 4:
        return mx.array(array)
    return mx.array(array.transpose(1, 2, 3, 0) if transposed else array.transpose(0, 2, 3, 1))
