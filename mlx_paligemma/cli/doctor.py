"""`mlx-paligemma doctor`: what this machine can do."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ..common.memory import gigabytes
from ..doctor import examine
from ..doctor.check import Check, State
from ..doctor.fits import Fit, Verdict, fits, memory_budget
from .app import FAILED, reporting

if TYPE_CHECKING:
    from rich.table import Table

PIPED_WIDTH = 120  # characters of a line where there is no terminal
COLOURS = {State.ok: "green", State.warning: "yellow", State.failed: "bold red", State.skipped: "dim"}
FIT_COLOURS = {Verdict.yes: "green", Verdict.tight: "yellow", Verdict.no: "red"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Check what this machine can do: devices, backends, memory, the Hub, and which models fit."""
    with reporting():
        checks, budget = _examined(), memory_budget()
        found = fits(budget)
        if as_json:
            print(as_text(checks, budget, found))
        else:
            show(checks, budget, found)
        raise typer.Exit(FAILED if _fails(checks) else 0)


def _examined() -> list[Check]:
    """All checks. On a terminal stderr tells the latest."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        return list(examine())
    checks = []
    with console.status("checking") as status:
        for check in examine():
            checks.append(check)
            status.update(f"{check.name}: {check.state}")
    return checks


def as_text(checks: Sequence[Check], budget: int, found: Sequence[Fit]) -> str:
    """The report as JSON."""
    report = {
        "verdict": State.failed if _fails(checks) else State.ok,
        "checks": [asdict(check) for check in checks],
        "memory_budget_bytes": budget,
        "fits": [asdict(fit) for fit in found],
    }
    return json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)


def show(checks: Sequence[Check], budget: int, found: Sequence[Fit]) -> None:
    """Two tables, and the count, on stdout."""
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
    console.print(_check_table(checks))
    console.print(_fit_table(budget, found))
    counts = {state: sum(check.state is state for check in checks) for state in State}
    console.print(", ".join(f"{count} {state}" for state, count in counts.items() if count))


def _fails(checks: Sequence[Check]) -> bool:
    return any(check.state is State.failed for check in checks)


def _check_table(checks: Sequence[Check]) -> Table:
    from rich import box
    from rich.table import Column, Table
    from rich.text import Text

    table = Table("", "check", Column("found", overflow="fold"), box=box.SIMPLE_HEAD)
    for check in checks:
        found = check.detail + (f"\n-> {check.advice}" if check.advice else "")
        table.add_row(Text(check.state, COLOURS[check.state]), Text(check.name), Text(found))
    return table


def _fit_table(budget: int, found: Sequence[Fit]) -> Table:
    """Models by precisions."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    precisions = list(dict.fromkeys(fit.precision for fit in found))
    title = f"Which models fit here ({gigabytes(budget)}, pictures of 448 pixels)"
    table = Table("model", *precisions, box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for model in dict.fromkeys(fit.model for fit in found):
        cells = [Text(f"{gigabytes(fit.bytes)} {fit.fits}", FIT_COLOURS[fit.fits]) for fit in found if fit.model == model]
        table.add_row(Text(model), *cells)
    return table
