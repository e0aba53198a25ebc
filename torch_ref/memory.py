"""The memory that torch has where it computes, and what fits into it. Twin of mlx_paligemma/memory.py."""

from __future__ import annotations

import torch

from mlx_paligemma.common import memory
from mlx_paligemma.common.checkpoint import Checkpoint
from mlx_paligemma.common.memory import Row
from mlx_paligemma.common.processor import ModelInputs

from .device import choose_device
from .paligemma import PaliGemma

ROW = Row()  # of a prompt about one picture


def free_bytes(device: torch.device | None = None) -> int:
    """What a model may still take: free on CUDA, left of what Metal recommends on MPS, available on the CPU.

    `device` None: the one that is chosen where nothing is said.
    """
    device = choose_device() if device is None else device
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return memory.memory_bytes()[1]


def check_model(checkpoint: Checkpoint, dtype: str, device: torch.device) -> None:
    """Raises TooLargeError where the model would not fit in `dtype`; nothing of it is read for this."""
    memory.check_model(checkpoint.config, dtype, ROW, free_bytes(device))


def check_batch(model: PaliGemma, inputs: ModelInputs, new_tokens: int) -> None:
    """Raises TooLargeError where a batch cannot be answered beside the loaded model; nothing of it is computed for this."""
    weight, row = model.language_model.norm.weight, Row.of(inputs, model.config, new_tokens)
    memory.check_batch(model.config, 8 * weight.itemsize, row, len(inputs.input_ids), free_bytes(weight.device))


def fitting_rows(model: PaliGemma, row: Row) -> int:
    """How many such rows can be answered together beside the loaded model; 0: none."""
    weight = model.language_model.norm.weight
    return memory.fitting_rows(model.config, 8 * weight.itemsize, row, free_bytes(weight.device))
