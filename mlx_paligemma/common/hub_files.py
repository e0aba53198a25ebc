"""Which files of a repository on the Hub are a checkpoint. Knows their names only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatch

from .errors import CheckpointError
from .mask_codec import FILE_NAME

SMALL_FILES = ("*.json", "*tokenizer.model", FILE_NAME)
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_NPZ = re.compile(r"(?P<name>.+?)(?P<dtype>\.(?:bf16|b16|f16))?\.npz(?:\.part\d+)?")


def is_npz(name: str) -> bool:
    """Whether a file is big_vision's form of a checkpoint, or a piece of one (SPEC: `.npz`, `.npz.part00`)."""
    return _NPZ.fullmatch(name) is not None and name != FILE_NAME


def wanted_files(repo: str, names: Iterable[str]) -> list[str]:
    """Those of a repository's files that make its checkpoint: safetensors if there are any, else one npz; never pickles.

    Raises:
        CheckpointError: there are no weights that can be read, or several npz checkpoints.
    """
    top = sorted(name for name in names if "/" not in name)
    weights = [name for name in top if name.endswith(".safetensors")] or _one_npz(repo, top)
    if not weights:
        raise CheckpointError(f"{repo} has no .safetensors or .npz file; {_way_out(top)}")
    return [name for name in top if name in weights or any(fnmatch(name, pattern) for pattern in SMALL_FILES)]


def _one_npz(repo: str, names: Iterable[str]) -> list[str]:
    """The files of one npz checkpoint: where the same weights are there in several dtypes, those in float32, the original."""
    dtypes: dict[str, dict[str, list[str]]] = {}
    for name in names:
        if is_npz(name) and (match := _NPZ.fullmatch(name)):
            dtypes.setdefault(match["name"], {}).setdefault(match["dtype"] or "", []).append(name)
    if len(dtypes) > 1:
        some = ", ".join(sorted(dtypes)[:3])
        raise CheckpointError(f"{repo} has several checkpoints ({some}); run `hf download {repo} FILE` and give the file's path")
    return next((found[min(found)] for found in dtypes.values()), [])


def _way_out(names: Iterable[str]) -> str:
    pickles = [name for name in names if name.endswith(PICKLES)]
    if not pickles:
        return "choose another repository or --revision"
    return (
        f"pickled weights ({pickles[0]}) are not read, since they can run programs; choose a --revision with safetensors, or have "
        "one made at https://huggingface.co/spaces/safetensors/convert"
    )
