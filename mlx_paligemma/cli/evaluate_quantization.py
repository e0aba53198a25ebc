"""`mlx-paligemma evaluate-quantization`: what each way to quantise costs, in answers rather than in perplexity."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import flags
from .app import reporting
from .console import show, status

if TYPE_CHECKING:
    from ..quantization_report.report import Report, Row

SCENES_BATCH = 16
HEADINGS = {"box found": "found", "count kind": "kinds"}  # of narrow columns
DECIMALS = {True: "+z.1f", False: ".1f"}  # of a difference, of a value


def evaluate_quantization(
    model: flags.Model = None,
    image: Annotated[list[str] | None, typer.Option("--image", help="Picture, folder or pattern. Left out: drawn scenes.")] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="Asked about every picture.")] = None,
    recipes: Annotated[
        str | None, typer.Option(help="Names with commas: 4-bit, mixed_3_6, nvfp4, 4-bit:32+vision. Left out: eleven of them.")
    ] = None,
    prompts: Annotated[int, typer.Option("--prompts", "-n", min=1, help="Of each task, about drawn scenes.")] = 100,
    dtype: flags.Dtype = None,
    max_tokens: flags.MaxTokens = 120,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Prompts answered together. Left out: 16, with --image 1.")] = None,
    revision: flags.Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="The JSON line alone, without the table.")] = False,
) -> None:
    """Measure what quantising costs: the demo model's accuracy, or agreement with the unquantised model."""
    with reporting():
        from ..quantization_report.evaluate import Setup, evaluate
        from ..quantization_report.recipes import read_recipes
        from .sources import separate_jobs

        pictures = [job.name for job in separate_jobs(image or [])]
        setup = Setup(
            recipes=read_recipes(recipes),
            model=model,
            pictures=pictures,
            questions=prompt or [],
            prompts=prompts,
            dtype=None if dtype is None else dtype.value,
            revision=revision,
            batch=batch_size or (1 if pictures else SCENES_BATCH),
            max_tokens=max_tokens,
        )
        with status() as tell:
            report = evaluate(setup, tell)
        _show(report, as_json)


def _show(report: Report, as_json: bool) -> None:
    """The table, unless it is not wanted, and the JSON line."""
    if not as_json:
        show(_table(report), _footnote(report))
    print(json.dumps(report.as_dict(), allow_nan=False))


def _table(report: Report) -> Any:
    from rich.box import SIMPLE
    from rich.table import Table

    title = f"{report.model}, {report.dtype}, {report.prompts:,} prompts for each recipe"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("recipe")
    for column in ("MB", "KL", *(HEADINGS.get(name, name) for name in report.unquantised.figures)):
        table.add_column(column, justify="right")
    for row in (report.unquantised, *report.recipes):
        table.add_row(*_cells(row, report))
    return table


def _cells(row: Row, report: Report) -> tuple[str, ...]:
    differs = report.against == "truth" and row is not report.unquantised
    found = [row.figures.get(name) for name in report.unquantised.figures]
    figures = (
        "" if each is None else format(each.difference if differs else 100 * each.value, DECIMALS[differs]) for each in found
    )
    return row.name, f"{row.nbytes / 1e6:,.1f}", "" if row.divergence is None else f"{row.divergence:.5f}", *figures


def _footnote(report: Report) -> str:
    if report.against == "truth":
        measured = "unquantised: per cent; the others: points that they differ by"
    else:
        measured = "per cent that agrees with the unquantised model; boxes and masks that one of both lacks count 0"
    return f"{measured}. KL: divergence from the unquantised model, nats, mean over its answers' tokens. MB: weights in files"
