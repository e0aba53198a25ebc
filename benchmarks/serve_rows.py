"""Tokens per second of rows that the server's engine decodes together, over those of one row.

Usage: python benchmarks/serve_rows.py --help; on Linux preload OpenBLAS (LD_PRELOAD). Prompts are random ids, greedy, without
grammar, eos off. Runs of one row and of many take turns in one process. A table, then one JSON line; exit 1 where a ratio is below
--least.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any

import mlx.core as mx
import typer
from comparison.random_checkpoint import config_of

from mlx_paligemma import load
from mlx_paligemma.benchmark.report import machine
from mlx_paligemma.benchmark.requests import greedy_request, random_inputs
from mlx_paligemma.benchmark.setup import random_model
from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.common.processor import ModelInputs
from mlx_paligemma.fusion import FusedPaliGemma, fuse
from mlx_paligemma.serve.engine import Engine

PROMPT_TOKENS = 16
Moment = tuple[float, float]  # seconds: of the clock, and of the process's threads together
NO_TOKEN = -2  # what eos is called here, so that nothing ends a row early


@dataclass(frozen=True)
class Speed:
    """Tokens per second, and per second of all cores together, in which other programs do not count."""

    tps: float
    per_cpu_second: float


@dataclass(frozen=True)
class Arm:
    """An engine with its model, and what its rows ask."""

    engine: Engine
    config: PaliGemmaConfig

    def speed(self, rows: int, tokens: int) -> Speed:
        """Of all rows, from the first token of the last one to the last token of the first one: while all of them decode."""
        inputs, times = random_inputs(self.config, PROMPT_TOKENS, rows), [list[Moment]() for _ in range(rows)]
        extra = rows - 1  # one row is let in at each step
        asked = [self.engine.steps(greedy_request(self.config, _row(inputs, row), tokens + extra)) for row in range(rows)]
        readers = [threading.Thread(target=_note, args=pair) for pair in zip(asked, times, strict=True)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        begin, end = max(row[0] for row in times), min(row[-1] for row in times)
        counted = sum(sum(begin[0] < moment[0] <= end[0] for moment in row) for row in times)
        return Speed(counted / (end[0] - begin[0]), counted / (end[1] - begin[1]))


def main(
    size: Annotated[list[str] | None, typer.Option(help="demo, tiny, small-pg1, small-pg2 or a released size.")] = None,
    resolution: Annotated[int, typer.Option(help="Pixels; of random models.")] = 224,
    rows: Annotated[int, typer.Option(min=2, help="That decode together.")] = 8,
    tokens: Annotated[int, typer.Option(min=2, help="New tokens per row while all decode.")] = 64,
    trials: Annotated[int, typer.Option(min=1, help="Of each, in turn.")] = 7,
    least: Annotated[float, typer.Option(help="The ratio that each must reach.")] = 2.5,
) -> None:
    """Measure, show, judge."""
    results = [_measured(name, resolution, rows, tokens, trials) for name in size or ["demo", "small-pg2"]]
    for result in results:
        rates = "{size:>10}  {one_row_tps:8.1f}  {rows_tps:8.1f}  {ratio:5.2f}x  {cpu_ratio:5.2f}x of CPU time"
        print(rates.format(**result), file=sys.stderr)
    print(json.dumps({"kind": "serve_rows", "machine": machine(), "rows": rows, "tokens": tokens, "results": results}))
    raise typer.Exit(int(any(result["ratio"] < least for result in results)))


def _measured(size: str, resolution: int, rows: int, tokens: int, trials: int) -> dict[str, Any]:
    """Medians of tokens per second, and of the ratios of runs that were neighbours."""
    arm = _arm(_model_of(size, resolution), rows)
    for count in (1, rows):
        arm.speed(count, tokens)  # warms up
    pairs = [(arm.speed(1, tokens), arm.speed(rows, tokens)) for _ in range(trials)]
    arm.engine.close()
    ratios = [many.tps / one.tps for one, many in pairs]
    of_cpu = [many.per_cpu_second / one.per_cpu_second for one, many in pairs]
    return {
        "size": size,
        "one_row_tps": _median(one.tps for one, _ in pairs),
        "rows_tps": _median(many.tps for _, many in pairs),
        "ratio": _median(ratios),
        "least_and_most": [round(min(ratios), 2), round(max(ratios), 2)],
        "cpu_ratio": _median(of_cpu),
    }


def _median(values: Iterable[float]) -> float:
    return round(statistics.median(values), 2)


def _model_of(size: str, resolution: int) -> Callable[[], FusedPaliGemma]:
    """Loads or makes the model, in the engine's thread; float32, as the demo computes."""

    def made() -> Any:
        model = load()[0] if size == "demo" else fuse(random_model(config_of(size, resolution), mx.float32))
        model.config = replace(model.config, eos_token_id=NO_TOKEN)
        return model

    return made


def _arm(model: Callable[[], FusedPaliGemma], rows: int) -> Arm:
    found: list[PaliGemmaConfig] = []

    def noted() -> FusedPaliGemma:
        made = model()
        found.append(made.config)
        return made

    return Arm(Engine(noted, max_rows=rows, max_waiting=rows), found[0])


def _row(inputs: ModelInputs, row: int) -> ModelInputs:
    return replace(inputs, input_ids=inputs.input_ids[row : row + 1], pixel_values=inputs.pixel_values[row : row + 1])


def _note(steps: Any, times: list[Moment]) -> None:
    for _ in steps:
        times.append((time.perf_counter(), time.process_time()))


if __name__ == "__main__":
    typer.run(main)
