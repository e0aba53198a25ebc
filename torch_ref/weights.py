"""Reading a checkpoint into the PyTorch model: strict, one tensor at a time. Twin of mlx_paligemma/weights.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mlx_paligemma.common.big_vision import big_vision_arrays
from mlx_paligemma.common.checkpoint import Checkpoint, check_dtype, read_checkpoint
from mlx_paligemma.common.errors import CheckpointError
from mlx_paligemma.common.hub import find_folder
from mlx_paligemma.common.locations import MaskDecoder, MaskEncoder
from mlx_paligemma.common.mask_codec import FILE_NAME, read_mask_codec
from mlx_paligemma.common.packed import PARTS, unpack
from mlx_paligemma.common.processor import PaliGemmaProcessor
from mlx_paligemma.common.tensors import EMBEDDING, HEAD, PATCHES, TensorInfo
from mlx_paligemma.common.tokenizer import PaliGemmaTokenizer

from .device import choose_device, choose_dtype
from .mask_decoder import MaskCodec
from .memory import check_model
from .paligemma import PaliGemma


def load(
    model: str | Path | None = None, *, dtype: str | None = None, device: str = "auto", revision: str | None = None
) -> tuple[PaliGemma, PaliGemmaProcessor]:
    """Load a checkpoint for inference.

    Args:
        model: a folder or a Hub id; None for the bundled demo.
        dtype: "float32", "bfloat16" or "float16" to compute in; None: as stored (the bundled demo: float32).
        device: "auto", "cuda", "mps" or "cpu".
        revision: branch, tag or commit on the Hub.

    Raises:
        CheckpointError: something is missing, damaged, or does not belong together.
        OptionError: the dtype or the device is unknown.
        TooLargeError: there is not the memory for it; nothing has been read then.
    """
    place = choose_device(device)
    checkpoint = read_checkpoint(find_folder(model, revision))
    tokenizer = PaliGemmaTokenizer.from_folder(checkpoint.folder)
    network = load_model(checkpoint, dtype or ("float32" if model is None else None), place)
    return network, PaliGemmaProcessor(network.config, tokenizer, *mask_functions(checkpoint.folder))


def load_model(checkpoint: Checkpoint, dtype: str | None = None, device: torch.device = torch.device("cpu")) -> PaliGemma:
    """The network with its weights in `dtype` (None: as stored, if the device can) on `device`. Needs no tokenizer.

    Raises:
        OptionError: the dtype is unknown, or the device does not have it.
        TooLargeError: there is not the memory for it; nothing has been read then.
    """
    target = choose_dtype(check_dtype(dtype or checkpoint.dtype), device, is_asked=dtype is not None)
    check_model(checkpoint, str(target).removeprefix("torch."), device)
    weights: dict[str, Tensor] = {}
    for name, tensor in _read_tensors(checkpoint, target, device):
        if name != HEAD or not torch.equal(tensor, weights[EMBEDDING]):  # else it is tied, and goes before the others come
            weights[name] = tensor
    with torch.device("meta"):  # no memory for weights that are replaced at once
        model = PaliGemma(replace(checkpoint.config, tie_word_embeddings=HEAD not in weights))
    model.load_state_dict(weights, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def mask_functions(folder: Path) -> tuple[MaskDecoder, MaskEncoder] | tuple[None, None]:
    """Decoder and encoder of the folder's mask codec, which is read on first use; None where the folder has none."""
    path = folder / FILE_NAME
    return _lazy_functions(path) if path.exists() else (None, None)


def load_mask_codec(path: Path) -> MaskCodec:
    """The mask codec in a file, on the CPU. Raises CheckpointError when an array is missing or of another shape."""
    config, arrays = read_mask_codec(path)
    codec = MaskCodec(config)
    codec.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=True)
    return codec.eval().requires_grad_(False)


def _lazy_functions(path: Path) -> tuple[MaskDecoder, MaskEncoder]:
    @cache
    def codec() -> MaskCodec:
        return load_mask_codec(path)

    def decode(codes: np.ndarray) -> np.ndarray:
        return codec().decode(torch.from_numpy(codes))[..., 0].numpy()

    def encode(masks: np.ndarray) -> np.ndarray:
        return codec().encode(torch.from_numpy(masks)[..., None]).numpy()

    return decode, encode


def _read_tensors(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Each tensor under our name, unpacked. One is in memory twice while it is cast: the largest come first, when there is room."""
    if checkpoint.npz is not None:
        for name, array in big_vision_arrays(checkpoint.npz):
            yield name, _as_torch(array, checkpoint.tensors[name].dtype).to(device=device, dtype=dtype)
        return
    for name, info in checkpoint.largest_first():
        module, _, part = name.rpartition(".")
        if module in checkpoint.packings and part in PARTS:
            continue
        tensor = _unpacked(checkpoint, module) if module in checkpoint.packings and part == "weight" else _read(info)
        if name == PATCHES and checkpoint.channels_last:
            tensor = tensor.permute(0, 3, 1, 2).contiguous()
        yield name, tensor.to(device=device, dtype=dtype)


def _unpacked(checkpoint: Checkpoint, module: str) -> Tensor:
    """float32 [out, in]."""
    names = {part: f"{module}.{part}" for part in ("weight", *PARTS)}
    tensors = {part: _read(checkpoint.tensors[name]) for part, name in names.items() if name in checkpoint.tensors}
    arrays = {part: (tensor.float() if tensor.is_floating_point() else tensor).numpy() for part, tensor in tensors.items()}
    return torch.from_numpy(unpack(arrays, checkpoint.packings[module]))


def _as_torch(array: np.ndarray, dtype: str) -> Tensor:
    """NumPy has no bfloat16: such an array comes as uint16."""
    return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16) if dtype == "bfloat16" else torch.from_numpy(array)


def _read(info: TensorInfo) -> Tensor:
    try:
        with safe_open(info.file, framework="pt") as tensors:  # anew for each: an open file keeps what was read of it mapped
            tensor: Tensor = tensors.get_tensor(info.key)
    except (SafetensorError, OSError):
        problem = f"{info.file}: {info.key} cannot be read; the file has changed meanwhile, or the disk fails"
        raise CheckpointError(f"{problem}: copy it again") from None
    return tensor
