"""A comparison as tables for people."""

from __future__ import annotations

import sys

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from mlx_paligemma.benchmark.pairs import Ratio

from .measured import CaseResult
from .processes import OURS
from .requirements import Outcome, Verdict

COLOURS = {Outcome.met: "green", Outcome.missed: "bold red", Outcome.refused: "yellow"}
RATIOS = {
    "first token": "time_to_first_token_s",
    "of CPU time": "first_token_cpu_s",
    "time per token": "decode_s",
    "of CPU time ": "decode_cpu_s",
    "peak memory": "peak_memory_bytes",
}
WIDTH = 170  # characters of a line where there is no terminal


def show_case(result: CaseResult) -> None:
    """Medians of the arms with their shares of the roofline, then the ratios."""
    arms, ratios = _table(f"{result.case.name}, {len(result.runs[OURS])} runs each, {result.tokens} new tokens"), _table("")
    for column in ("arm", "first token", "tokens/s", "peak memory", "process peak", "of GEMM rate", "of GEMV bandwidth"):
        arms.add_column(column, justify="left" if column == "arm" else "right")
    for name in result.runs:
        share, first = result.shares(name), result.median(name, "time_to_first_token_s")
        memory = (_gigabytes(result.median(name, metric)) for metric in ("peak_memory_bytes", "process_peak_bytes"))
        arms.add_row(
            name, f"{first:.3f} s", f"{result.tokens_per_second(name):.2f}", *memory, f"{share['gemm']:.0%}", f"{share['gemv']:.0%}"
        )
    for column in ("theirs over ours", *RATIOS, "tokens that agree"):
        ratios.add_column(column, justify="left" if column == "theirs over ours" else "right")
    for peer in result.peers:
        cells = (_ratio(result.ratio(peer, metric)) for metric in RATIOS.values())
        ratios.add_row(peer, *cells, f"{result.same_tokens(peer)} of {result.tokens}")
    _console().print(arms, ratios)


def show_verdicts(verdicts: list[Verdict]) -> None:
    """Requirement by requirement."""
    table = _table("Requirements")
    for column in ("", "found", "required", "outcome"):
        table.add_column(column)
    for verdict in verdicts:
        sign = ">=" if verdict.at_least else "<="
        outcome = verdict.outcome if verdict.steady else f"{verdict.outcome} (the runs drifted by {verdict.drift:.0%})"
        table.add_row(verdict.subject, f"{verdict.found:.3f}", f"{sign} {verdict.limit}", outcome, style=COLOURS[verdict.outcome])
    _console().print(table)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE)


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def _gigabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e9:.3f} GB"


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return ""
    mark = "" if ratio.is_steady else f"\nrefused: drift {ratio.drift:.0%}"
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f}){mark}"
