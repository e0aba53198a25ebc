"""Ours against other implementations, side by side on this machine: same bytes, same pixels, same prompt ids.

Usage: `make bench`, or python benchmarks/compare.py --help. README.md in this folder tells the method. Every arm is a process of
its own that stays alive; the runs go there and back (A-B-B-A). A table per case, then one JSON line; exit 1 where a requirement
is missed, or refused because the machine did not hold still.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from comparison.case import Case
from comparison.measured import CaseResult, measure_case
from comparison.processes import Place
from comparison.requirements import Verdict, judge
from comparison.show import show_case, show_verdicts
from comparison.start_up import host_times, start_up_times

from mlx_paligemma.benchmark.report import machine

CASES = ["small-pg1:224:float32", "small-pg2:224:float32", "small-pg2:448:float32", "small-pg2:224:bfloat16"]
ROOT = Path(__file__).parent.parent


def main(
    case: Annotated[list[str] | None, typer.Option(help="SIZE:PIXELS:DTYPE[:ROWS]. Left out: the four of README.md.")] = None,
    arm: Annotated[list[str] | None, typer.Option(help="mlx-vlm, transformers, torch_ref. Left out: the first two.")] = None,
    pairs: Annotated[int, typer.Option(min=5, help="Runs of each arm.")] = 6,
    tokens: Annotated[int, typer.Option(min=2, help="New tokens per run.")] = 32,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Beside the picture's.")] = 17,
    pause: Annotated[float, typer.Option(min=0, help="Seconds of rest before each run.")] = 0.5,
    environments: Annotated[Path, typer.Option(help="Folder with one environment per peer.")] = ROOT / ".venv-bench",
    openblas: Annotated[Path | None, typer.Option(help="BLAS to preload for both MLX arms, on Linux.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of BLAS and torch, in all arms.")] = 1,
    host: Annotated[bool, typer.Option(help="Time of building a step, of --help and of the import, too.")] = True,
    output: Annotated[Path | None, typer.Option(help="Write the JSON here too.")] = None,
) -> None:
    """Compare, show, judge."""
    place = Place(environments, openblas, threads, pause)
    results, extra = [], {}
    for text in case or CASES:
        results.append(_measured(Case.parse(text), arm or ["mlx-vlm", "transformers"], place, (pairs, tokens, prompt_tokens)))
        show_case(results[-1])
    if host:
        extra = {"host": host_times(place), "start_up": start_up_times(place)}
    verdicts = judge(results, extra)
    show_verdicts(verdicts)
    data = _as_json(results, extra, verdicts)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(data, indent=1) + "\n")
    print(json.dumps(data))
    raise typer.Exit(int(any(verdict.outcome != "met" for verdict in verdicts)))


def _measured(case: Case, peers: list[str], place: Place, counts: tuple[int, int, int]) -> CaseResult:
    with tempfile.TemporaryDirectory(prefix="paligemma-bench-") as scratch:
        return measure_case(case, peers, place, Path(scratch), *counts)


def _as_json(results: list[CaseResult], extra: dict[str, Any], verdicts: list[Verdict]) -> dict[str, Any]:
    return {
        "kind": "comparison",
        "machine": machine(),
        "cases": [result.as_dict() for result in results],
        **extra,
        "verdicts": [verdict.as_dict() for verdict in verdicts],
    }


if __name__ == "__main__":
    typer.run(main)
