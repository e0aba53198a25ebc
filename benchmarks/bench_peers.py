"""Other implementations of PaliGemma, each in its own environment, as arms of compare.py: mlx-vlm and transformers.

Each is used as its own documentation does, and left as it is. Pictures and prompts are prepared for all arms alike.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from comparison.arm import Arm, Cost, Job, Stopwatch, serve


def open_arm(job: Job) -> Arm:
    """The peer that the job names."""
    return {"mlx-vlm": _mlx_vlm, "transformers": _transformers}[job.arm](job)


def _mlx_vlm(job: Job) -> Arm:
    import mlx.core as mx
    from mlx_vlm.generate import generate_step
    from mlx_vlm.utils import load_model

    model = load_model(Path(job.checkpoint))
    ids, pixels = job.arrays()
    if len(ids) > 1:
        raise SystemExit("mlx-vlm answers every row of a batch about the first picture; there is nothing to compare")

    def run(tokens: int) -> Cost:
        mx.synchronize()  # the loop has launched one step more than it was asked for
        mx.reset_peak_memory()
        watch, chosen = Stopwatch(), []
        prompt, picture = mx.array(ids), mx.array(pixels[:, 0]).transpose(0, 3, 1, 2)
        for token, _ in generate_step(prompt, model, picture, mx.ones_like(prompt), max_tokens=tokens, temperature=0.0):
            watch.token()
            chosen.append(token)
        cost = watch.cost(mx.get_peak_memory(), chosen)
        mx.synchronize()
        return cost

    return Arm({"mlx-vlm": version("mlx-vlm"), "mlx": version("mlx"), "device": str(mx.default_device())}, run)


def _transformers(job: Job) -> Arm:
    import torch
    from transformers import PaliGemmaForConditionalGeneration

    device = ("cuda" if torch.cuda.is_available() else "cpu") if job.device == "auto" else job.device
    model = PaliGemmaForConditionalGeneration.from_pretrained(job.checkpoint, dtype=getattr(torch, job.dtype)).to(device).eval()
    ids, pixels = job.arrays()
    prompt, picture = torch.from_numpy(ids).long(), torch.from_numpy(pixels[:, 0]).permute(0, 3, 1, 2)
    settings: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def run(tokens: int) -> Cost:
        def clock(chosen: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
            chosen[0, -1].item()  # waits for the device
            watch.token()
            return torch.zeros(len(chosen), dtype=torch.bool, device=chosen.device)

        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        watch = Stopwatch()
        rows = {"input_ids": prompt.to(device), "pixel_values": picture.to(device)}
        rows |= {"attention_mask": torch.ones_like(rows["input_ids"]), "token_type_ids": torch.zeros_like(rows["input_ids"])}
        made = model.generate(**rows, max_new_tokens=tokens, stopping_criteria=[clock], **settings)
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
        return watch.cost(peak, made[0, ids.shape[1] :].tolist())

    versions = {name: version(name) for name in ("transformers", "torch")}
    return Arm(versions | {"device": device, "threads": torch.get_num_threads()}, run)


if __name__ == "__main__":
    serve(open_arm)
