"""What a model needs in memory, and what the machine has. The one place that reckons either; knows neither mlx nor torch.

Axes: P patches of a picture, S tokens of a row (its pictures' included), D hidden_size, N heads, K key-value heads, H head size.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from .config import PaliGemmaConfig
from .errors import TooLargeError
from .packed import Packing
from .tensors import EMBEDDING, WEIGHT, expected_shapes, shapes_with_head

if TYPE_CHECKING:
    from .processor import ModelInputs

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
RESOLUTIONS = (448, 224)  # pixels, of released models below the largest
HALF = "bfloat16"  # quantised models keep vision, norms and activations in it
BITS = {"float32": 32, "float16": 16, HALF: 16}
QUANTISED = (8, 4)  # bits that are advised
GROUP = 64  # weights that share a scale, where nothing else is said


@dataclass(frozen=True)
class Row:
    """What one row of a batch is about."""

    pictures: int = 1
    text_tokens: int = 32  # of the prompt
    new_tokens: int = 100
    queries: int | None = None  # that attend at a time; None: all

    @classmethod
    def of(cls, inputs: ModelInputs, config: PaliGemmaConfig, new_tokens: int) -> Row:
        """A row of a batch that has been made."""
        pictures = inputs.pixel_values.shape[1]
        return cls(pictures, inputs.input_ids.shape[1] - pictures * config.vision.num_patches, new_tokens)


def weight_bytes(config: PaliGemmaConfig, bits: float = 16, table_bits: float | None = None) -> int:
    """Of a loaded model.

    `bits` is what a weight of the text model takes (4.5 and 8.5 with scales), others at least 16; `table_bits` one of the
    embedding table and of a head, None: like the others of the text model.
    """
    sizes = {name: prod(shape) for name, shape in expected_shapes(config).items()}
    table = sizes[EMBEDDING] * (1 if config.tie_word_embeddings else 2)
    layers = sum(size for name, size in sizes.items() if _is_quantised(name) and name != EMBEDDING)
    rest = sum(sizes.values()) - layers - sizes[EMBEDDING]
    return int(layers * bits + table * (table_bits or bits) + rest * max(bits, BITS[HALF])) // 8


def packed_bytes(config: PaliGemmaConfig, packings: Mapping[str, Packing], bits: int = 16, only: str = "") -> int:
    """Of weights, by the packing of each module; numbers that are not packed take `bits`. `only`: of names that begin so."""
    shapes = shapes_with_head(config)
    per_weight = {name: packings[module].bits_per_weight for name in shapes if (module := name.removesuffix(WEIGHT)) in packings}
    return int(sum(prod(shape) * per_weight.get(name, bits) for name, shape in shapes.items() if name.startswith(only))) // 8


def quantised_bits(bits: int) -> float:
    """Bits that a weight takes when quantised to `bits` in groups of GROUP: 8.5, 6.5 or 4.5 for 8, 6 or 4; 16 and 32 stay."""
    return bits if bits >= 16 else Packing(bits, GROUP).bits_per_weight


def row_bytes(config: PaliGemmaConfig, row: Row, bits: float = 16) -> int:
    """Of one row of a batch beside the weights, at most: its cache, and the activations of the layer with the most."""
    text, vision = config.text, config.vision
    tokens = row.pictures * vision.num_patches + row.text_tokens
    cache = 2 * text.num_hidden_layers * (tokens + row.new_tokens) * text.num_key_value_heads * text.head_dim
    scores = 3 * text.num_attention_heads * min(tokens, row.queries or tokens) * tokens  # raw, capped, as weights
    decoding = tokens * (4 * text.intermediate_size + 8 * text.hidden_size) + scores
    encoding = row.pictures * vision.num_patches * (4 * vision.intermediate_size + 8 * vision.hidden_size)
    return int((cache + max(decoding, encoding)) * max(bits, BITS[HALF])) // 8


def needed_bytes(
    config: PaliGemmaConfig, bits: float = 16, row: Row = Row(), rows: int = 1, table_bits: float | None = None
) -> int:
    """Of a loaded model that answers `rows` prompts together."""
    return weight_bytes(config, bits, table_bits) + rows * row_bytes(config, row, bits)


def model_bytes(config: PaliGemmaConfig, dtype: str, row: Row = Row(), weights: int | None = None) -> tuple[int, int]:
    """Of a loaded model's weights in `dtype` (`weights`, where it is known), and of these with what it is to answer."""
    size = weight_bytes(config, BITS[dtype]) if weights is None else weights
    return size, size + row_bytes(config, row, BITS[dtype])


def check_model(
    config: PaliGemmaConfig, dtype: str, row: Row, free: int, *, weights: int | None = None, quantises: bool = False
) -> None:
    """Refuse a model that could not answer about one picture with `free` bytes, before it is read.

    Args:
        config: of the model.
        dtype: of its floats.
        row: what it is to answer.
        free: bytes.
        weights: bytes of its weights; None: of floats.
        quantises: whether quantised weights would take less memory here; the PyTorch reference unpacks them.

    Raises:
        TooLargeError: with what it needs, what there is, and what would fit.
    """
    _, need = model_bytes(config, dtype, row, weights)
    if need > free:
        asked = f"the model needs {gigabytes(need)} of memory in {dtype} with a picture of {config.vision.image_size} pixels"
        raise TooLargeError(f"{asked}, and {gigabytes(free)} are free; {_advice(config, dtype, row, free, quantises)}")


def check_batch(config: PaliGemmaConfig, bits: int, row: Row, rows: int, free: int) -> None:
    """Refuse a batch that could not be answered with `free` bytes beside the loaded model, before it is begun.

    Raises:
        TooLargeError: with what it needs, what there is, and how many rows would fit.
    """
    need, most = rows * row_bytes(config, row, bits), fitting_rows(config, bits, row, free)
    if rows > most:
        asked = f"{rows} prompts" if rows > 1 else f"a prompt about {row.pictures} pictures" if row.pictures > 1 else "a prompt"
        advice = f"give at most {most} at a time" if most else "give fewer pictures, allow fewer tokens, or free some memory"
        raise TooLargeError(f"{asked} need {gigabytes(need)} of memory beside the model, and {gigabytes(free)} are free; {advice}")


def fitting_rows(config: PaliGemmaConfig, bits: int, row: Row, free: int) -> int:
    """How many rows can be answered together with `free` bytes beside the loaded model; 0: none."""
    return max(free, 0) // row_bytes(config, row, bits)


def gigabytes(count: float) -> str:
    """Bytes in words; what is small in megabytes."""
    return f"{count / 1e9:.1f} GB" if abs(count) >= 1e8 else f"{count / 1e6:.0f} MB"


def memory_bytes() -> tuple[int, int]:
    """The machine's memory, and what a program may still take of it. A container's limit counts; on macOS all is taken as free."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _number(CGROUP / "memory.max")
    total, used = (limit, _used_in_container()) if limit and limit < total else (total, 0)
    free = _kibibytes("MemAvailable") if MEMINFO.exists() else total
    return total, max(min(free, total - used), 0)


def _advice(config: PaliGemmaConfig, dtype: str, row: Row, free: int, quantises: bool) -> str:
    """The first that fits: the same model in fewer bits, its variants for smaller pictures, and these in fewer bits."""
    whole = config.vision.image_size
    for size in (whole, *(size for size in RESOLUTIONS if size < whole)):
        smaller = replace(config, vision=replace(config.vision, image_size=size))
        for words, bits, table_bits in _smaller_forms(dtype, quantises):
            need = needed_bytes(smaller, bits, row, table_bits=table_bits)
            if need <= free:
                lower = [f"its variant for {size} pixels"] if size < whole else []
                return f"{' '.join(lower + words) or 'it'} needs {gigabytes(need)}"
    return "choose a smaller model, `mlx-paligemma doctor` says which fit, or free some memory"


def _smaller_forms(dtype: str, quantises: bool) -> list[tuple[list[str], float, float | None]]:
    """Words for a form, bits of a weight, and of one in the table."""
    half = [] if dtype == HALF else [([f"in dtype {HALF} (--dtype {HALF})"], 16.0, None)]
    packed = [
        ([f"quantised to {bits} bits (mlx-paligemma convert -q --q-bits {bits})"], quantised_bits(bits), quantised_bits(8))
        for bits in QUANTISED
        if quantises
    ]
    return [([], float(BITS[dtype]), None), *half, *packed]


def _is_quantised(name: str) -> bool:
    return name.startswith("language_model.") and not name.endswith("norm.weight")


def _used_in_container() -> int:
    """Bytes, without the files that are kept in memory only until it is wanted."""
    stat = CGROUP / "memory.stat"
    lines = stat.read_text(encoding="ascii").splitlines() if stat.exists() else []
    kept = sum(int(line.split()[1]) for line in lines if line.startswith(("active_file ", "inactive_file ")))
    return (_number(CGROUP / "memory.current") or 0) - kept


def _number(path: Path) -> int | None:
    """What a control file says; None where there is none, or no limit ("max")."""
    text = path.read_text(encoding="ascii").strip() if path.exists() else ""
    return int(text) if text.isdigit() else None


def _kibibytes(name: str) -> int:
    """Bytes: a line of /proc/meminfo."""
    lines = MEMINFO.read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
