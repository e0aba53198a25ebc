"""`mlx-paligemma benchmark`: speed and memory here, beside what this machine allows."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..published import Size
from . import flags
from .app import reporting
from .console import show, status

if TYPE_CHECKING:
    from ..benchmark.measure import KernelChoice
    from ..benchmark.report import Report, Row

TITLES = {
    "vision_ms": ("picture encoder", 1, "ms"),
    "time_to_first_token_s": ("time to first token", 1, "s"),
    "prompt_tps": ("prompt tokens a second", 1, ""),
    "generation_tps": ("new tokens a second", 1, ""),
    "peak_memory_bytes": ("peak memory", 1e9, "GB"),
    "load_peak_bytes": ("peak memory of loading", 1e9, "GB"),
}


class Variant(StrEnum):
    """What --ab compares."""

    force_fused = "force-fused"


def benchmark(
    model: flags.Model = None,
    random: Annotated[Size | None, typer.Option(help="Make a model of this size with random weights; no download.")] = None,
    resolution: Annotated[int | None, typer.Option(help="Pixels, with --random: 224, 448 or 896. Left out: 224.")] = None,
    dtype: flags.Dtype = None,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", "-p", min=1, help="Beside the picture's.")] = 24,
    generation_tokens: Annotated[int, typer.Option("--generation-tokens", "-g", min=2, help="New tokens.")] = 100,
    batch: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Rows at a time, each with its own picture.")] = 1,
    bits: Annotated[int | None, typer.Option(help="With --random: weights quantised to 3, 4, 5, 6 or 8 bits.")] = None,
    trials: Annotated[int, typer.Option("--num-trials", "-n", min=1, help="Runs; the medians are reported.")] = 5,
    ab: Annotated[Variant | None, typer.Option("--ab", help="Compare two ways of computing instead (Metal only).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The JSON line alone, without the table.")] = False,
) -> None:
    """Measure speed and memory, and compare them with what this machine's own bandwidth and arithmetic allow."""
    with reporting():
        from ..benchmark.measure import compare_kernels, measure
        from ..benchmark.setup import Setup

        kind, size = None if dtype is None else dtype.value, None if random is None else random.value
        setup = Setup(model, size, resolution, kind, prompt_tokens, generation_tokens, batch, trials, bits)
        with status() as tell:
            found = measure(setup, tell) if ab is None else None
            choice = compare_kernels(setup, tell) if ab is not None else None
        if found is not None:
            _show(found, as_json)
        if choice is not None:
            _show_choice(choice, as_json)


def _show(found: Report, as_json: bool) -> None:
    """The table, unless it is not wanted, and the JSON line."""
    data = found.as_dict()
    if not as_json:
        show(_table(found), *_footnotes(data))
    print(json.dumps(data, allow_nan=False))


def _table(found: Report) -> Any:
    from rich.box import SIMPLE
    from rich.table import Table

    setup = found.plan.setup
    rows = f", {setup.batch} rows" if setup.batch > 1 else ""
    shape = f"{found.plan.config.vision.image_size} pixels, {setup.prompt_tokens} + {setup.generation_tokens} tokens{rows}"
    packed = f"{setup.quantised}-bit, " if setup.quantised else ""
    title = f"{setup.name}, {packed}{found.plan.dtype}, {shape}; medians of {setup.trials}"
    table = Table(title=title, title_justify="left", box=SIMPLE)
    for column in ("", "measured", "predicted", "share"):
        table.add_column(column, justify="right" if column else "left")
    for row in found.rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: Row) -> tuple[str, str, str, str]:
    title, unit, name = TITLES[row.name]
    measured, predicted = ("" if value is None else f"{value / unit:,.4g} {name}" for value in (row.measured, row.predicted))
    return title, measured, predicted, "" if row.share is None else f"{row.share:.0%}"


def _footnotes(data: dict[str, Any]) -> tuple[str, str]:
    on, rates = data["machine"], data["rates"]
    where = f"{on['chip']} ({on['device']}), {on['system']}, mlx {on['mlx']}, mlx-paligemma {on['mlx_paligemma']}"
    vector, matrix = f"{rates['gemv_gb_s']:.4g} GB/s", f"{rates['gemm_tflops']:.3g} TFLOP/s (n = {rates['gemm_size']})"
    return where, f"predicted: from this machine's own rates, matrix-vector {vector} and matrix-matrix {matrix}"


def _show_choice(choice: KernelChoice, as_json: bool) -> None:
    setup = choice.plan.setup
    ratios = {"time_to_first_token": choice.time_to_first_token, "peak_memory": choice.peak_memory}
    if not as_json:
        for name, ratio in ratios.items():
            steady = "" if ratio.is_steady else f"; not to be relied on, the runs drifted by {ratio.drift:.0%}"
            interval = f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
            show(f"{name}, default over force_fused: {interval}, {ratio.pairs} pairs{steady}")
    described = {"ab": Variant.force_fused, "model": setup.name, "dtype": choice.plan.dtype, "batch": setup.batch}
    figures = {name: asdict(ratio) | {"steady": ratio.is_steady} for name, ratio in ratios.items()}
    print(json.dumps(described | {"resolution": choice.plan.config.vision.image_size} | figures, allow_nan=False))
