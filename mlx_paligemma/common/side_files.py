"""The small files beside weights and config.json: those that a source has are carried over, those that it lacks are made.

Formats: preprocessor_config.json and generation_config.json of transformers (https://huggingface.co/docs/transformers).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .config import PaliGemmaConfig
from .errors import CheckpointError
from .mask_codec import FILE_NAME

CARRIED = re.compile(
    r"tokenizer(_\w+)?\.(model|json)|(special_tokens_map|added_tokens)\.json"
    r"|((pre)?processor|generation)_config\.json"
    r"|chat_template\.(json|jinja)|additional_chat_templates/[\w-]+\.jinja"
    rf"|{re.escape(FILE_NAME)}|(LICEN[CS]E|NOTICE)[\w-]*(\.(txt|md))?"
)
BICUBIC = 3  # Pillow's number of the filter


def files_to_copy(folder: Path) -> list[Path]:
    """Which files of a source belong beside any form of its weights, as paths relative to it, sorted.

    Vocabulary, processors, generation defaults, chat templates, the mask codec, licences: never weights, programs or hidden
    files. A link counts only where it points into the folder itself or, as in the Hub's cache, to the files of a repository.
    """
    found = [*folder.iterdir(), *(folder / "additional_chat_templates").glob("*")]
    names = sorted(path.relative_to(folder) for path in found)
    return [name for name in names if CARRIED.fullmatch(name.as_posix()) and _is_own_file(folder / name, folder)]


def preprocessor_json(config: PaliGemmaConfig) -> dict[str, Any]:
    """preprocessor_config.json: transformers and mlx-vlm find their processor through it, and make the pixels that ours makes.

    Bit for bit so with transformers' Pillow backend; with torchvision installed, it resizes with that, and one pixel value in
    ten thousand differs by one of 255 levels. Published files leave `do_convert_rgb` empty: pictures with transparency fail.
    """
    size, half = config.vision.image_size, [0.5, 0.5, 0.5]
    steps = dict.fromkeys(("do_convert_rgb", "do_resize", "do_rescale", "do_normalize"), True)
    return steps | {
        "image_processor_type": "SiglipImageProcessor",
        "processor_class": "PaliGemmaProcessor",
        "image_seq_length": config.vision.num_patches,
        "size": {"height": size, "width": size},
        "resample": BICUBIC,
        "rescale_factor": 1 / 255,
        "image_mean": half,
        "image_std": half,
    }


def generation_json(config: PaliGemmaConfig) -> dict[str, Any]:
    """generation_config.json: where answers end. Without it transformers takes the text model's own ids."""
    return {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}


def json_bytes(data: Mapping[str, Any]) -> bytes:
    """A JSON file as the Hub's are written: sorted keys, two spaces, a line end.

    Raises:
        CheckpointError: a key that was kept from a source holds what JSON cannot.
    """
    try:
        return (json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
    except (ValueError, RecursionError):
        raise CheckpointError("the source's config.json holds NaN, Infinity or a nesting without end; correct it there") from None


def _is_own_file(path: Path, folder: Path) -> bool:
    if not path.is_file():  # also a loop of links
        return False
    real = path.resolve()
    of_the_cache = real.parent.name == "blobs" and real.parent.parent.name.startswith("models--")
    return of_the_cache or real.is_relative_to(folder.resolve())
