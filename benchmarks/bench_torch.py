"""torch_ref, the PyTorch reference, as an arm of compare.py."""

from __future__ import annotations

from pathlib import Path

import torch
from comparison.arm import Arm, Cost, Job, Stopwatch, serve

from mlx_paligemma.benchmark.requests import greedy_request
from mlx_paligemma.common.checkpoint import read_checkpoint
from mlx_paligemma.common.processor import ModelInputs
from torch_ref import generation
from torch_ref.device import choose_device, peak_memory, reset_peak_memory
from torch_ref.weights import load_model


def open_arm(job: Job) -> Arm:
    """The reference, as `torch_ref.load` gives it."""
    device = choose_device(job.device)
    model = load_model(read_checkpoint(Path(job.checkpoint)), job.dtype, device)
    inputs = ModelInputs(*job.arrays())

    def run(tokens: int) -> Cost:
        request = greedy_request(model.config, inputs, tokens)
        reset_peak_memory(device)
        watch, chosen = Stopwatch(), []
        for step in generation.steps_of(model, request, None):
            watch.token()
            chosen.append(step.token_ids[0])
        peak = peak_memory(device) if device.type == "cuda" else None
        return watch.cost(peak, chosen)

    return Arm({"torch": torch.__version__, "device": str(device), "threads": torch.get_num_threads()}, run)


if __name__ == "__main__":
    serve(open_arm)
