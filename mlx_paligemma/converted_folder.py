"""A conversion written to a folder that mlx-paligemma, mlx-vlm, and with `to="hf"` transformers and vLLM load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from . import __version__
from .common.checkpoint import read_checkpoint
from .common.config_file import config_json
from .common.hub import bundled_checkpoint, find_folder
from .common.memory import BITS, packed_bytes
from .common.model_card import model_card
from .common.new_folder import new_folder
from .common.side_files import files_to_copy, generation_json, json_bytes, preprocessor_json
from .common.tensors import WEIGHT, hub_name
from .common.tokenizer import PaliGemmaTokenizer, check_vocabulary
from .common.tokenizer_files import tokenizer_files
from .common.upload import check_upload, upload_folder
from .conversion import Conversion
from .memory import small_cache
from .quantization import Recipe, quantization_block
from .shard_writer import ShardWriter

SHARD_BYTES = 5 * 10**9
SIDE_BYTES = 64 * 2**20  # room for the small files
CARD = "README.md"
FORMATS = {"mlx": "mlx", "hf": "pt"}  # what transformers and MLX want to read in a file's metadata


def convert(
    model: str | Path | None = None,
    mlx_path: str | Path = "mlx_model",
    *,
    to: str = "mlx",
    dtype: str | None = None,
    recipe: Recipe | None = None,
    dequantize: bool = False,
    check_finite: bool = False,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    upload_repo: str | None = None,
    revision: str | None = None,
) -> Conversion:
    """Write a checkpoint in another form into a folder, whole or not at all.

    Args:
        model: a folder, a Hub id or a big_vision .npz file; None: the bundled demo.
        mlx_path: the folder, which must not be there or be empty.
        to: "mlx", or "hf": as the Hub's originals are, for transformers, vLLM and training.
        dtype: of all floats; None: as stored, with a recipe bfloat16 instead of float32.
        recipe: how to quantise; None: quantised weights stay as they are, in the form "hf" they are unpacked.
        dequantize: unpack quantised weights, first if there is a recipe.
        check_finite: refuse weights that are NaN or infinite.
        overwrite: replace a folder with files in it, once the new one is complete.
        shard_bytes: of one safetensors file at most, save for a tensor that is larger.
        upload_repo: Hub id to upload the new folder to.
        revision: branch, tag or commit of the source on the Hub.

    Raises:
        CheckpointError: the source cannot be read, the target cannot be written, the disk is too small, the upload fails.
        OptionError: wishes exclude each other.
    """
    if upload_repo is not None:
        check_upload(upload_repo)
    source, target = find_folder(model, revision), Path(mlx_path).expanduser()
    conversion = Conversion(read_checkpoint(source), to, dtype, recipe, dequantize, check_finite)
    base = str(model) if model is not None and not Path(model).expanduser().exists() else None
    with new_folder(target, _needed_bytes(conversion), overwrite, conversion.checkpoint.path) as folder:
        _write(conversion, folder, shard_bytes, _card(conversion, base, upload_repo or target.resolve().name))
    if upload_repo is not None:
        upload_folder(target, upload_repo)
    return conversion


def _write(conversion: Conversion, folder: Path, shard_bytes: int, card: str) -> None:
    """The small files first: what is wrong with the source's shows before the weights are read."""
    _copy_side_files(conversion.checkpoint.folder, folder)
    _write_side_files(conversion, folder)
    (folder / CARD).write_text(card, encoding="utf-8")
    with small_cache(conversion.config):
        writer = ShardWriter(folder, shard_bytes, FORMATS[conversion.to])
        for tensors in conversion.tensors():
            writer.add({hub_name(name): array for name, array in tensors.items()})
        writer.finish()


def _needed_bytes(conversion: Conversion) -> int:
    """Of the folder, about."""
    return packed_bytes(conversion.config, conversion.packings, BITS[conversion.float_dtype]) + SIDE_BYTES


def _copy_side_files(source: Path, folder: Path) -> None:
    for path in files_to_copy(source):
        (folder / path).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / path, folder / path)


def _write_side_files(conversion: Conversion, folder: Path) -> None:
    """Those that the source lacks, and config.json."""
    config, tokenizer = conversion.config, PaliGemmaTokenizer.from_folder(conversion.checkpoint.folder)
    check_vocabulary(tokenizer, config)
    files = tokenizer_files(tokenizer.model, config.image_token_index)
    files |= {"preprocessor_config.json": json_bytes(preprocessor_json(config))}
    files |= {"generation_config.json": json_bytes(generation_json(config))}
    for name, content in files.items():
        if not (folder / name).exists():
            (folder / name).write_bytes(content)
    (folder / "config.json").write_bytes(json_bytes(_config(conversion)))


def _config(conversion: Conversion) -> dict[str, Any]:
    source = conversion.checkpoint.folder / "config.json"
    raw = {} if conversion.checkpoint.npz else json.loads(source.read_text(encoding="utf-8"))
    written = config_json(conversion.config, conversion.float_dtype, raw)
    written = {key: value for key, value in written.items() if key not in ("quantization", "quantization_config")}
    if conversion.packings:
        named = {hub_name(module + WEIGHT).removesuffix(WEIGHT): packing for module, packing in conversion.packings.items()}
        block = quantization_block(named)
        written |= {"quantization": block, "quantization_config": block}
    return written


def _card(conversion: Conversion, base: str | None, name: str) -> str:
    source = conversion.checkpoint.folder / CARD
    forms = sorted({f"{packing.bits}-bit {packing.mode}" for packing in conversion.packings.values()})
    recipe = conversion.recipe.name if conversion.recipe else ", ".join(forms)
    card = source.read_text(encoding="utf-8", errors="replace") if source.is_file() else ""
    return model_card(
        name,
        base,
        recipe or None,
        version=__version__,
        to=conversion.to,
        dtype=conversion.float_dtype,
        licence="mit" if conversion.checkpoint.folder == bundled_checkpoint() else "gemma",
        source_card=card,
    )
