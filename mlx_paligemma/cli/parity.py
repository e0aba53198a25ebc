"""`mlx-paligemma parity`: where MLX and a PyTorch reference part, on the user's own checkpoint."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..backends import open_backend
from ..parity.origin import Against, Question
from . import flags
from .app import FAILED, reporting
from .sources import joint_job

if TYPE_CHECKING:
    from ..parity.report import ParityReport

PICTURE = Path(__file__).parent.parent / "demo" / "shapes.png"
PROMPT = "detect star ; circle"
SHOWN = 10  # modules in the table


def parity(  # noqa: PLR0913, PLR0917 - a command has many flags
    model: flags.Model = None,
    revision: flags.Revision = None,
    image: Annotated[list[str] | None, typer.Option("--image", help="Picture or address. Left out: the demo's.")] = None,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to ask about it.")] = PROMPT,
    dtype: flags.Dtype = None,
    against: Annotated[Against, typer.Option(help="The reference, in float32.")] = Against.torch_ref,
    reference: Annotated[
        str | None, typer.Option(help="The reference's checkpoint: another form of the same model. Left out: --model's.")
    ] = None,
    device: Annotated[str, typer.Option(help="The reference's: cpu, cuda, mps or auto.")] = "cpu",
    batch: Annotated[
        bool, typer.Option("--batch/--no-batch", help="Add a second, padded row; without it, half the memory.")
    ] = True,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-m", help="Greedy tokens that are compared.", min=1)] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="The report as one JSON object, on stdout.")] = False,
    html: Annotated[Path | None, typer.Option(help="The report as a page of its own.")] = None,
    bless: Annotated[Path | None, typer.Option(help="Keep this run in a file.")] = None,
    compare: Annotated[Path | None, typer.Option(help="Show what moved since a run that was kept.")] = None,
) -> None:
    """Compare MLX with a PyTorch reference: module by module, from pixels to logits, token by token."""
    os.environ.setdefault("MLX_ENABLE_TF32", "0")  # float32 is to mean float32; MLX reads it once, when it is imported
    with reporting():
        for name in ("mlx", "torch"):
            open_backend(name)  # says what to install
        from ..parity import html_page, stored
        from ..parity.comparison import compare_backends

        before = None if compare is None else stored.read_blessed(compare)
        names = tuple(image or [str(PICTURE)])
        pictures = tuple(joint_job(names).open())
        kind = None if dtype is None else dtype.value
        question = Question(pictures, names, prompt, model, revision, reference, against, kind, device, batch, max_tokens)
        with _bar() as tell:
            report = compare_backends(question, tell)
        if before is not None:
            report = replace(report, moved=stored.moved(before, report) or ("nothing has moved",))
        if html is not None:
            html_page.write_page(report, html)
        if bless is not None and not report.interrupted:
            stored.bless(report, bless)
        _show(report, as_json)
        if report.interrupted:
            raise KeyboardInterrupt
        raise typer.Exit(FAILED if report.verdict == "fail" else 0)


def _show(report: ParityReport, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report.as_dict(), allow_nan=False))
        return
    from rich.console import Console

    from ..parity.html_page import summary

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(_table(report))
    for line in (*summary(report), *report.moved):
        console.print(line, markup=False, soft_wrap=True)
    console.print(f"verdict: {report.verdict}")


def _table(report: ParityReport) -> Any:
    """The modules that use up most of their budget."""
    from rich.box import SIMPLE
    from rich.table import Table

    title = f"The {SHOWN} worst of {len(report.modules)} modules, {report.origin.dtype} against {report.origin.against}"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("module", overflow="fold", min_width=32)
    for column in ("shape", "relative\nerror", "budget", "max abs\nerror", "1 -\ncosine"):
        table.add_column(column, justify="right", no_wrap=True)
    for module in report.worst(SHOWN):
        found, shape = module.distance, "×".join(map(str, module.shape))
        figures = (f"{found.relative_error:.1e}", f"{module.budget:.1e}", f"{found.max_abs_error:.1e}", f"{1 - found.cosine:.0e}")
        table.add_row(module.name or "model", shape, *figures, style="red" if module.fails else None)
    return table


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar on stderr, if that is a terminal; yields what says how far the run is."""
    if not sys.stderr.isatty():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda stage, done, total: bar.update(task, description=stage, completed=done, total=total)
