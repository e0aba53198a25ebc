"""mlx_paligemma as an arm of compare.py."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import mlx.core as mx
from comparison.arm import Arm, Cost, Job, serve

from mlx_paligemma.benchmark.rates import measure_rates
from mlx_paligemma.benchmark.report import machine
from mlx_paligemma.benchmark.trial import run_trial
from mlx_paligemma.common.checkpoint import read_checkpoint
from mlx_paligemma.common.processor import ModelInputs
from mlx_paligemma.fusion import fuse
from mlx_paligemma.weights import load_model


def open_arm(job: Job) -> Arm:
    """The fused model, as `load` gives it."""
    rates = measure_rates(getattr(mx, job.dtype))
    model = fuse(load_model(read_checkpoint(Path(job.checkpoint)), job.dtype))
    inputs = ModelInputs(*job.arrays())

    def run(tokens: int) -> Cost:
        costs = asdict(run_trial(model, inputs, tokens))
        return Cost(**costs | {"token_ids": [step[0] for step in costs["token_ids"]]})

    return Arm(machine() | {"rates": asdict(rates)}, run)


if __name__ == "__main__":
    serve(open_arm)
