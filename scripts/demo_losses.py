"""The demo's losses: what each patch shows (for the vision tower), and the suffix with soft targets for the loc bins."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.common.tokenizer import NUM_LOC, PaliGemmaTokenizer
from mlx_paligemma.demo.scenes import COLORS, DIGITS, KINDS, Scene, coverage
from torch_ref.paligemma import PaliGemma
from torch_ref.train import Batch, BatchPart, suffix_logits

THINGS = KINDS + DIGITS  # what a patch can show, 0 being the background
FINE = 7  # cells along a patch, for the outlines
WIDE, NARROW = 8.0, 2.0  # bins: spread of the soft loc targets at the start and at the end
SILENCE_WEIGHT = 0.15  # of "nothing there": it competes with single bins, over which the soft targets spread
DENSE_WEIGHT = 0.5  # of the patch losses in joint training
LOC_WEIGHT = 2.0  # of a loc token against any other


class VisionLoss(nn.Module):
    """From each patch: which thing it shows, its colour, the thing's box relative to the patch, and where in the patch it lies."""

    def __init__(self, config: PaliGemmaConfig):
        super().__init__()
        self.grid = config.vision.image_size // config.vision.patch_size
        self.parts = [1 + len(THINGS), 1 + len(COLORS), 4, FINE * FINE]
        self.head = nn.Linear(config.vision.hidden_size, sum(self.parts))
        self.accuracy: list[float] = []

    def forward(self, model: PaliGemma, batch: Batch, step: int) -> Tensor:
        """A loss function for `torch_ref.train`."""
        loss = self.dense(model.vision_tower(batch.pixels), batch)
        if (step + 1) % 100 == 0:
            print(f"patch shape accuracy {np.mean(self.accuracy[-100:]):.3f}", flush=True)
        return loss

    def dense(self, features: Tensor, batch: Batch) -> Tensor:
        """Features [U, P, D] -> scalar. Averages run over object patches and background patches apart."""
        targets = [patch_targets(batch.examples[i].scene, self.grid) for i in batch.pictures]
        things, colors, boxes, cover = (torch.from_numpy(np.stack(part)) for part in zip(*targets, strict=True))
        out_things, out_colors, out_boxes, out_cover = self.head(features).split(self.parts, dim=-1)
        objects = things > 0
        self.accuracy.append((out_things.argmax(-1) == things)[objects].float().mean().item())
        on_objects = F.cross_entropy(out_things[objects], things[objects]) + F.cross_entropy(out_colors[objects], colors[objects])
        on_background = F.cross_entropy(out_things[~objects], things[~objects])
        outline = F.binary_cross_entropy_with_logits(out_cover, cover)
        return on_objects + on_background + 5 * (out_boxes - boxes)[objects].abs().mean() + 2 * outline


class JointLoss(nn.Module):
    """Suffix loss plus the patch loss. A token weighs 1 / sqrt(its answer's length): long masks must not drown short answers."""

    def __init__(self, config: PaliGemmaConfig, tokenizer: PaliGemmaTokenizer, steps: int, widest: float = WIDE):
        super().__init__()
        self.vision, self.widest = VisionLoss(config), widest
        self.places = nn.Linear(config.text.hidden_size, 4 * config.text.hidden_size)
        self.first_loc, self.steps = tokenizer.first_loc, steps
        self.locating = torch.tensor([tokenizer.encode(word)[0] for word in ("detect", "segment")])

    def forward(self, model: PaliGemma, batch: Batch, step: int) -> Tensor:
        """A loss function for `torch_ref.train`."""
        features = model.vision_tower(batch.pixels)
        rows = model.multi_modal_projector(features)
        spread = self.widest * (NARROW / self.widest) ** min(step / (0.8 * self.steps), 1.0)
        losses, weights = [], []
        for part in batch.parts:
            logits, targets = suffix_logits(model, rows, part)
            losses.append(self.token_losses(logits, targets, spread))
            counts = (part.labels[:, 1:] >= 0).sum(1)
            share = counts.float().rsqrt() * torch.where(self._is_silent(part), SILENCE_WEIGHT, 1.0)
            weights.append(share.repeat_interleave(counts) * torch.where(self._is_loc(targets), LOC_WEIGHT, 1.0))
        weight = torch.cat(weights)
        suffix = (torch.cat(losses) * weight).sum() / weight.sum()
        return suffix + DENSE_WEIGHT * (self.vision.dense(features, batch) + self.place_loss(model, rows, batch, spread))

    def place_loss(self, model: PaliGemma, rows: Tensor, batch: Batch, spread: float) -> Tensor:
        """Rows [U, P, D] -> scalar: a patch's row tells the four loc tokens of the thing it shows, so that the decoder need only
        copy them.
        """
        targets = [patch_bins(batch.examples[i].scene, self.vision.grid) for i in batch.pictures]
        bins = torch.from_numpy(np.stack(targets))
        objects = bins[..., 0] >= 0
        asked = self.places(rows[objects]).unflatten(-1, (4, -1))
        log_probs = (asked @ self._loc_rows(model).T).log_softmax(-1)
        return -(soft_bins(bins[objects], spread) * log_probs).sum(-1).mean()

    def _loc_rows(self, model: PaliGemma) -> Tensor:
        return model.language_model.embed_tokens.weight[self.first_loc : self.first_loc + NUM_LOC]

    def _is_loc(self, tokens: Tensor) -> Tensor:
        return (tokens >= self.first_loc) & (tokens < self.first_loc + NUM_LOC)

    def _is_silent(self, part: BatchPart) -> Tensor:
        """Bool [b]: a question about a place whose answer is empty."""
        asks_where = torch.isin(part.input_ids, self.locating).any(1)
        return asks_where & ((part.labels >= 0).sum(1) == 1)

    def token_losses(self, logits: Tensor, targets: Tensor, spread: float) -> Tensor:
        """[T, V] and [T] -> [T]. A loc token's target is a Gaussian over the bins around it."""
        log_probs = logits.log_softmax(-1)
        losses = -log_probs.gather(1, targets[:, None])[:, 0]
        is_loc = self._is_loc(targets)
        soft = soft_bins(targets[is_loc] - self.first_loc, spread)
        losses[is_loc] = -(soft * log_probs[is_loc, self.first_loc : self.first_loc + NUM_LOC]).sum(-1)
        return losses


def soft_bins(bins: Tensor, spread: float) -> Tensor:
    """Int [...] -> [..., 1024]: a Gaussian around each bin, sum 1."""
    return torch.softmax(-0.5 * ((torch.arange(NUM_LOC) - bins[..., None]) / spread) ** 2, dim=-1)


def patch_bins(scene: Scene, grid: int) -> np.ndarray:
    """Int64 [P, 4]: the bins y0, x0, y1, x1 of the thing that each patch shows, -1 on the background."""
    things, _, boxes, _ = patch_targets(scene, grid)
    places = boxes[:, [1, 0, 3, 2]] + np.tile(patch_centers(grid), 2)[:, [1, 0, 3, 2]]
    return np.where(things[:, None] > 0, np.clip(np.rint(places * NUM_LOC), 0, NUM_LOC - 1), -1).astype(np.int64)


def patch_centers(grid: int) -> np.ndarray:
    """Float64 [P, 2]: x, y as fractions of the picture."""
    return (np.stack(np.meshgrid(np.arange(grid), np.arange(grid)), -1).reshape(-1, 2) + 0.5) / grid


def patch_targets(scene: Scene, grid: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of each patch: thing [P] and colour [P] (0: background), the thing's box [P, 4] less the patch's centre, and
    the share of each of its FINE x FINE cells that things cover [P, FINE * FINE].
    """
    things, colors = np.zeros((2, grid * grid), dtype=np.int64)
    boxes = np.zeros((grid * grid, 4), dtype=np.float32)
    centers = patch_centers(grid)
    most = np.full(grid * grid, 0.25)  # a patch belongs to the thing that covers most of it, if that is a quarter
    cells = np.zeros((grid * FINE, grid * FINE), dtype=np.float32)
    for shape in scene.shapes + scene.digits:
        fine = np.asarray(coverage(shape.outline, grid * FINE, grid * FINE), dtype=np.float32) / 255
        cells = np.maximum(cells, fine)
        cover = fine.reshape(grid, FINE, grid, FINE).mean((1, 3)).reshape(-1)
        mine = cover > most
        most[mine] = cover[mine]
        things[mine], colors[mine] = 1 + THINGS.index(shape.kind), 1 + list(COLORS).index(shape.color)
        boxes[mine] = np.array(shape.box) - np.tile(centers[mine], 2)
    return things, colors, boxes, cells.reshape(grid, FINE, grid, FINE).swapaxes(1, 2).reshape(-1, FINE * FINE)
