"""`mlx-paligemma convert`: a checkpoint in another form: quantised or not, for MLX or for other programs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..common.errors import OptionError
from . import flags
from .app import reporting

if TYPE_CHECKING:
    from ..conversion import Conversion


class Form(StrEnum):
    """Choices of --to."""

    mlx = "mlx"
    hf = "hf"


class Mode(StrEnum):
    """Choices of --q-mode."""

    affine = "affine"
    mxfp4 = "mxfp4"
    mxfp8 = "mxfp8"
    nvfp4 = "nvfp4"


class Mixed(StrEnum):
    """Choices of --quant-predicate: bits of most layers, and of the more tender ones."""

    mixed_3_4 = "mixed_3_4"
    mixed_3_5 = "mixed_3_5"
    mixed_3_6 = "mixed_3_6"
    mixed_3_8 = "mixed_3_8"
    mixed_4_6 = "mixed_4_6"
    mixed_4_8 = "mixed_4_8"


def convert(  # noqa: PLR0913, PLR0917 - a command has many flags
    model: Annotated[
        str | None,
        typer.Option("--model", "--hf-path", help="Folder, Hub id or big_vision .npz file. Left out: the bundled demo."),
    ] = None,
    target: Annotated[Path, typer.Option("--mlx-path", "-o", help="The new folder.")] = Path("mlx_model"),
    to: Annotated[Form, typer.Option(help="For MLX programs, or as the Hub's originals are: transformers, vLLM.")] = Form.mlx,
    dtype: Annotated[flags.DtypeName | None, typer.Option(help="Of all that is not quantised. Left out: as stored.")] = None,
    quantize: Annotated[bool, typer.Option("--quantize", "-q", help="Pack the text model's weights into few bits.")] = False,
    q_bits: Annotated[int | None, typer.Option(help="3, 4, 5, 6 or 8. Left out: 4.")] = None,
    q_group_size: Annotated[int | None, typer.Option(help="Weights that share a scale: 32, 64 or 128. Left out: 64.")] = None,
    q_mode: Annotated[Mode, typer.Option(help="How they are packed; mxfp4, mxfp8 and nvfp4 say bits and groups.")] = Mode.affine,
    quant_predicate: Annotated[Mixed | None, typer.Option(help="Bits of most layers, and of the more tender ones.")] = None,
    q_embedding_bits: Annotated[int | None, typer.Option(help="Of the embedding table, which writes boxes. Left out: 8.")] = None,
    q_vision: Annotated[bool, typer.Option("--q-vision", help="Quantise picture encoder and projector too.")] = False,
    dequantize: Annotated[bool, typer.Option("--dequantize", "-d", help="Unpack quantised weights first.")] = False,
    max_shard_size: Annotated[float, typer.Option(min=0.001, help="Gigabytes of one weight file at most.")] = 5.0,
    check_finite: Annotated[bool, typer.Option("--check-finite", help="Refuse weights that are NaN or infinite.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder with files in it.")] = False,
    upload_repo: Annotated[str | None, typer.Option(help="Hub id to upload the new folder to.")] = None,
    revision: flags.Revision = None,
) -> None:
    """Write a checkpoint in another form: quantised, unpacked, in another dtype, for MLX or for other programs."""
    with reporting():
        asked = (q_bits, q_group_size, quant_predicate, q_embedding_bits)
        if not quantize and (any(value is not None for value in asked) or q_vision or q_mode != Mode.affine):
            raise OptionError("--q-bits, --q-group-size and the like say how to quantise; add -q")
        from .. import converted_folder
        from ..quantization import Recipe

        mixed = None if quant_predicate is None else quant_predicate.value
        table_bits = 8 if q_embedding_bits is None else q_embedding_bits
        recipe = Recipe(q_bits, q_group_size, q_mode.value, mixed, table_bits, q_vision) if quantize else None
        made = converted_folder.convert(
            model,
            target,
            to=to.value,
            dtype=None if dtype is None else dtype.value,
            recipe=recipe,
            dequantize=dequantize,
            check_finite=check_finite,
            overwrite=overwrite,
            shard_bytes=int(max_shard_size * 1e9),
            upload_repo=upload_repo,
            revision=revision,
        )
        print(f"{target}: {_described(target, made)}")
        if upload_repo is not None:
            print(f"https://huggingface.co/{upload_repo}")


def _described(folder: Path, made: Conversion) -> str:
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return f"{size / 1e9:.3g} GB of weights, {f'{made.recipe.name}, the rest ' if made.recipe else ''}{made.float_dtype}"
