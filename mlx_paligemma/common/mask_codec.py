"""The layout of a mask codec's file, `vae-oid.npz`, and how its arrays are named here.

Paper: All in Tokens, arXiv:2301.02229. The published file holds 49 float32 arrays in PyTorch layout; codecs of other
widths in the same layout are read too, if their shapes agree with one another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import CheckpointError
from .tokenizer import NUM_SEG

MASK_SIZE = 64  # pixels of a decoded mask's side
GRID = 4  # codes along a side
FILE_NAME = "vae-oid.npz"
PUBLISHED_AT = "gs://big_vision/paligemma/vae-oid.npz"


@dataclass(frozen=True)
class MaskCodecConfig:
    """Widths of the codec; the defaults are those of the published file."""

    widths: tuple[int, int, int, int] = (16, 32, 64, 128)  # channels at 32, 16, 8 and 4 pixels
    embedding_dim: int = 512
    num_codes: int = 128

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each of the file's 49 arrays. Transposed convolutions are [in, out, 4, 4]."""
        a, b, c, d = self.widths
        e, codes = self.embedding_dim, (self.num_codes, self.embedding_dim)
        shapes: dict[str, tuple[int, ...]] = {
            "_vq_vae._embedding": codes,
            "_vq_vae._ema_w": codes,
            "_vq_vae._ema_cluster_size": codes[:1],
        }
        weights = {
            "encoder.0": (a, 1, 4, 4), "encoder.2": (b, a, 4, 4), "encoder.4": (c, b, 4, 4), "encoder.6": (d, c, 4, 4),
            "encoder.10": (e, d, 1, 1), "decoder.0": (d, e, 1, 1), "decoder.12": (1, a, 1, 1),
        }  # fmt: skip
        for block in ("encoder.8", "encoder.9", "decoder.2", "decoder.3"):
            weights |= {f"{block}.net.0": (d, d, 3, 3), f"{block}.net.2": (d, d, 3, 3), f"{block}.net.4": (d, d, 1, 1)}
        for name, shape in weights.items():
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        transposed = {"decoder.4": (d, d, 4, 4), "decoder.6": (d, c, 4, 4), "decoder.8": (c, b, 4, 4), "decoder.10": (b, a, 4, 4)}
        for name, shape in transposed.items():
            shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[1:2]}
        return shapes


def read_mask_codec(path: Path) -> tuple[MaskCodecConfig, dict[str, np.ndarray]]:
    """Read a codec: its widths, and its arrays under our parameter names, in PyTorch layout, float32.

    The codebook's running averages serve training only and are left out.

    Raises:
        CheckpointError: the file is missing, not an npz, or an array is missing, unknown or of another shape.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name], dtype=np.float32) for name in file.files}
    except Exception as error:  # noqa: BLE001 - a damaged archive makes its readers raise nearly anything
        reason = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        raise CheckpointError(f"{path} is not a readable mask codec ({reason}); the published one is {PUBLISHED_AT}") from None
    config = _widths(path, arrays)
    _check(path, {name: array.shape for name, array in arrays.items()}, config.shapes())
    kept = {name: array for name, array in arrays.items() if "_ema_" not in name}
    return config, {name.replace("_vq_vae._embedding", "vq_vae.embedding"): array for name, array in kept.items()}


def _widths(path: Path, arrays: Mapping[str, np.ndarray]) -> MaskCodecConfig:
    names = ("encoder.0.weight", "encoder.2.weight", "encoder.4.weight", "encoder.6.weight", "_vq_vae._embedding")
    missing = [name for name in names if name not in arrays or not arrays[name].ndim]
    if missing:
        raise CheckpointError(f"{path} has no array {missing[0]}; it is not a mask codec (published: {PUBLISHED_AT})")
    codes = arrays["_vq_vae._embedding"].shape[0]
    if codes != NUM_SEG:
        raise CheckpointError(f"{path} has a codebook of {codes} rows, but there are {NUM_SEG} <seg> tokens; take {PUBLISHED_AT}")
    a, b, c, d = (arrays[name].shape[0] for name in names[:4])
    return MaskCodecConfig((a, b, c, d), arrays["_vq_vae._embedding"].shape[-1], codes)


def _check(path: Path, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    for name in sorted(wanted.keys() | found.keys()):
        if found.get(name) != wanted.get(name):
            raise CheckpointError(f"{path}: array {name} is {found.get(name, 'missing')}, should be {wanted.get(name, 'absent')}")
