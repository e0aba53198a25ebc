"""Many clients at once ask a server of its own process, and every answer is held against that of a single run.

Usage: `make load`, or python benchmarks/serve_load.py --help. README.md in this folder tells the method. A table, then one JSON
line; exit 1 where an answer is wrong, a request fails, or the queue grows past its bound.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from serving_load.clients import Load, Tally, ask_all
from serving_load.questions import Question, single_runs
from serving_load.server import Figures, ServerProcess, started

from mlx_paligemma.benchmark.report import machine

QUESTIONS = 64  # different ones, of which every client draws


def main(
    clients: Annotated[int, typer.Option(min=1, help="That ask at the same time.")] = 64,
    seconds: Annotated[float, typer.Option(min=1, help="For which new requests are sent.")] = 60,
    batch_size: Annotated[int, typer.Option(min=1, help="Answers that the server makes together.")] = 8,
    max_waiting: Annotated[int, typer.Option(min=0, help="Requests that may wait in the server; more get 429.")] = 48,
    questions: Annotated[int, typer.Option(min=1, help="Different ones.")] = QUESTIONS,
    seed: Annotated[int, typer.Option(help="Of scenes, prompts and who asks what.")] = 0,
    openblas: Annotated[Path | None, typer.Option(help="BLAS to preload for the server, on Linux.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the JSON here too.")] = None,
) -> None:
    """Ask, compare, show, judge."""
    asked = single_runs(questions, seed)
    with started(batch_size, max_waiting, openblas) as server:
        tally, figures = asyncio.run(_measured(server, asked, Load(clients, seconds, seed)))
    data = summary(tally, figures, Load(clients, seconds, seed)) | {"bound": batch_size + max_waiting, "blas": str(openblas)}
    if output is not None:
        output.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    for name, value in data.items():
        print(f"{name:>24}  {value}", file=sys.stderr)
    print(json.dumps(data))
    raise typer.Exit(int(is_bad(data)))


async def _measured(server: ServerProcess, questions: list[Question], load: Load) -> tuple[Tally, Figures]:
    """Warm up with a few clients, then let all of them ask, while the server is watched."""
    await ask_all(server.address, questions, Load(2, min(2.0, load.seconds), load.seed))
    figures = server.figures()
    watching = asyncio.create_task(figures.watch())
    tally = await ask_all(server.address, questions, load)
    watching.cancel()
    await figures.read_end()
    return tally, figures


def summary(tally: Tally, figures: Figures, load: Load) -> dict[str, object]:
    """All that is told of a run."""
    return {"kind": "serve_load", "machine": machine(), **asdict(load), **tally.as_dict(), **figures.as_dict(tally.seconds)}


def is_bad(data: dict[str, object]) -> bool:
    """Whether an answer was wrong, a request failed, none was right, or more were open than may be."""
    open_too_many = float(str(data["peak_open"])) > float(str(data["bound"]))
    return bool(data["wrong"] or data["errors"] or open_too_many) or not data["right"]


if __name__ == "__main__":
    typer.run(main)
