"""A training loop for any iterable of (picture, prefix, suffix): prefix-LM mask, loss on the suffix alone, resumable.

Paper: PaliGemma, arXiv:2407.07726, section 3: full attention over picture and prefix, next-token loss on suffix and eos.
Optimiser: AdamW, warm-up then cosine to zero, global-norm clipping, as in the paper's transfers.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlx_paligemma.common.image import ImageSource, open_image, pixel_values
from mlx_paligemma.common.processor import IGNORED, ModelInputs, PaliGemmaProcessor

from .paligemma import PaliGemma


class Example(Protocol):
    """One training example. Examples that share the same picture object, side by side, share its encoding."""

    @property
    def image(self) -> ImageSource:
        """The picture, in any form that generation takes too."""

    @property
    def prefix(self) -> str:
        """The prompt."""

    @property
    def suffix(self) -> str:
        """The answer; "" is an answer too."""


@dataclass(frozen=True)
class TrainOptions:
    """How to train. Rates are those after the warm-up."""

    steps: int
    batch_size: int = 16  # examples per step
    learning_rate: float = 1e-5
    vision_rate: float = 1.0  # factor on the learning rate for the vision tower; 0 freezes it
    weight_decay: float = 0.0  # AdamW's, on matrices only
    warmup: float = 0.05  # share of the steps
    clip_norm: float = 1.0
    length_groups: int = 1  # a step's examples are split by length into this many parts, to pad less
    save_every: int = 200  # steps between checkpoints
    log_every: int = 20  # steps between log lines


@dataclass(frozen=True)
class Batch:
    """One step's data. U different pictures, B examples, split by length into parts."""

    pixels: Tensor  # float32 [U, height, width, 3]
    parts: tuple[BatchPart, ...]
    examples: tuple[Example, ...]  # B
    pictures: tuple[int, ...]  # for each of the U pictures, the index of its first example


@dataclass(frozen=True)
class BatchPart:
    """Examples of like length."""

    picture: Tensor  # int [b], which of the U pictures each row shows
    input_ids: Tensor  # int [b, L]
    padding: Tensor | None
    prefix_length: Tensor
    labels: Tensor  # int [b, L], -100 where nothing is to be learned


LossFunction = Callable[[PaliGemma, Batch, int], Tensor]


def train(
    model: PaliGemma,
    processor: PaliGemmaProcessor,
    examples: Iterable[Example],
    options: TrainOptions,
    folder: Path,
    loss: LossFunction | None = None,
    log: Callable[[str], None] = print,
) -> None:
    """Train `model` in place; checkpoints go to `folder`, and a second call with the same arguments goes on from there.

    `loss` is `suffix_loss` by default; a loss that is a module has its parameters trained too. On resuming, as many
    examples as were used are taken off the iterable's front (by `examples.skip(n)` if it has that).
    """
    loss = loss or suffix_loss
    optimizer = _optimizer(model, loss, options)
    step = _resume(folder, model, loss, optimizer)
    if step:
        log(f"resumed at step {step}")
    stream = _skipped(examples, step * options.batch_size)
    started, totals = time.monotonic(), []
    while step < options.steps:
        chosen = list(islice(stream, options.batch_size))
        if len(chosen) < options.batch_size:
            _save(folder, model, loss, optimizer, step)
            break
        _set_rate(optimizer, options, step)
        value = loss(model, collate(processor, chosen, options.length_groups), step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], options.clip_norm)
        optimizer.step()
        step += 1
        totals.append(value.item())
        if step % options.log_every == 0:
            log(
                json.dumps(
                    {"step": step, "loss": round(float(np.mean(totals)), 4), "seconds": round(time.monotonic() - started, 1)}
                )
            )
            totals = []
        if step % options.save_every == 0 or step == options.steps:
            _save(folder, model, loss, optimizer, step)


def suffix_loss(model: PaliGemma, batch: Batch, step: int) -> Tensor:
    """Mean cross-entropy over all suffix tokens of the batch, eos included."""
    rows = model.encode_images(batch.pixels[:, None])
    losses = torch.cat([F.cross_entropy(*suffix_logits(model, rows, part), reduction="none") for part in batch.parts])
    return losses.mean()


def suffix_logits(model: PaliGemma, image_rows: Tensor, part: BatchPart) -> tuple[Tensor, Tensor]:
    """Logits [T, V] where a suffix token is predicted, and these tokens [T], row by row. image_rows is [U, P, D]."""
    x = model.embed(part.input_ids, image_rows[part.picture])
    hidden = model.language_model(x, part.padding, part.prefix_length)
    targets = part.labels[:, 1:]
    wanted = targets != IGNORED
    return model.logits(hidden[:, :-1][wanted]).float(), targets[wanted]


def collate(processor: PaliGemmaProcessor, examples: Sequence[Example], groups: int = 1) -> Batch:
    """Examples to tensors. Pictures are read once each, however many examples show them."""
    pictures: dict[int, int] = {}
    for index, example in enumerate(examples):
        pictures.setdefault(id(example.image), index)
    numbers = {key: number for number, key in enumerate(pictures)}
    size = processor.config.vision.image_size
    pixels = np.stack([pixel_values(open_image(examples[index].image), size) for index in pictures.values()])
    inputs = processor.text_inputs([(example.prefix, example.suffix) for example in examples])
    shown = np.array([numbers[id(example.image)] for example in examples])
    order = np.argsort([(row != 0).sum() for row in inputs.attention_mask], kind="stable")
    parts = tuple(_part(inputs, rows, shown) for rows in np.array_split(order, groups) if len(rows))
    return Batch(torch.from_numpy(pixels), parts, tuple(examples), tuple(pictures.values()))


def _part(inputs: ModelInputs, rows: np.ndarray, shown: np.ndarray) -> BatchPart:
    padding = np.zeros(len(rows), dtype=np.int32) if inputs.padding is None else inputs.padding[rows]
    spare = int(padding.min())
    assert inputs.labels is not None and inputs.prefix_length is not None
    tensors = [torch.from_numpy(array[rows]).long() for array in (shown, inputs.input_ids, inputs.prefix_length, inputs.labels)]
    picture, input_ids, prefix_length, labels = tensors
    left = torch.from_numpy(padding - spare).long() if (padding > spare).any() else None
    return BatchPart(picture, input_ids[:, spare:], left, prefix_length, labels[:, spare:])


def _modules(model: PaliGemma, loss: LossFunction) -> dict[str, nn.Module]:
    return {"model": model} | ({"loss": loss} if isinstance(loss, nn.Module) else {})


def _optimizer(model: PaliGemma, loss: LossFunction, options: TrainOptions) -> torch.optim.AdamW:
    named = [(f"{key}.{name}", p) for key, module in _modules(model, loss).items() for name, p in module.named_parameters()]
    groups = []
    for vision in (True, False):
        for matrix in (True, False):
            chosen = [p for name, p in named if name.startswith("model.vision_tower.") == vision and (p.ndim > 1) == matrix]
            decay = options.weight_decay if matrix else 0.0
            groups.append({"params": chosen, "weight_decay": decay, "factor": options.vision_rate if vision else 1.0})
    return torch.optim.AdamW(groups, lr=options.learning_rate)


def _set_rate(optimizer: torch.optim.Optimizer, options: TrainOptions, step: int) -> None:
    warmup = max(options.warmup * options.steps, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * max(step - warmup, 0) / max(options.steps - warmup, 1)))
    rate = options.learning_rate * min((step + 1) / warmup, 1.0) * cosine
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def _skipped(examples: Iterable[Example], count: int) -> Iterator[Example]:
    skip = getattr(examples, "skip", None)
    return iter(skip(count)) if skip is not None else islice(iter(examples), count, None)


def _save(folder: Path, model: PaliGemma, loss: LossFunction, optimizer: torch.optim.Optimizer, step: int) -> None:
    state = {key: module.state_dict() for key, module in _modules(model, loss).items()}
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "training.pt.part"  # renamed when whole, so that a stop while writing loses nothing
    torch.save(state | {"optimizer": optimizer.state_dict(), "step": step}, part)
    part.replace(folder / "training.pt")


def _resume(folder: Path, model: PaliGemma, loss: LossFunction, optimizer: torch.optim.Optimizer) -> int:
    path = folder / "training.pt"
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for key, module in _modules(model, loss).items():
        module.load_state_dict(state[key])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
