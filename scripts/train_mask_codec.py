"""Trains the demo's mask codec: a small VQ-VAE in the layout of the published one.

Papers: All in Tokens, arXiv:2301.02229; Neural Discrete Representation Learning, arXiv:1711.00937 (moving-average codebook).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mlx_paligemma.common.mask_codec import MaskCodecConfig
from mlx_paligemma.demo.scenes import draw_scene
from torch_ref.mask_decoder import MaskCodec

CONFIG = MaskCodecConfig(widths=(8, 16, 32, 32), embedding_dim=64, num_codes=128)
BATCH, STEPS, WARMUP = 48, 3000, 300  # the warm-up trains without the codebook
DECAY, COMMITMENT = 0.99, 0.25


class Codebook:
    """Moving averages of the vectors that chose each code."""

    def __init__(self, codec: MaskCodec, vectors: Tensor):
        self.embedding = codec.vq_vae.embedding
        with torch.no_grad():
            self.embedding.copy_(vectors[torch.randperm(len(vectors))[: len(self.embedding)]])
        self.sizes = torch.ones(len(self.embedding))
        self.sums = self.embedding.detach().clone()

    @torch.no_grad()
    def update(self, vectors: Tensor, codes: Tensor) -> None:
        """Move every code towards the vectors that chose it; a code that nobody chooses jumps to a random vector."""
        chosen = F.one_hot(codes, len(self.sizes)).float()
        self.sizes.lerp_(chosen.sum(0), 1 - DECAY)
        self.sums.lerp_(chosen.T @ vectors, 1 - DECAY)
        dead = self.sizes < 0.02
        fresh = vectors[torch.randint(len(vectors), (int(dead.sum()),))]
        self.sums[dead], self.sizes[dead] = fresh, 1.0
        self.embedding.copy_(self.sums / self.sizes[:, None])


def train_mask_codec(path: Path, seed: int) -> None:
    """Train from a seed and write the npz with its 49 arrays."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    codec = MaskCodec(CONFIG)
    codec.vq_vae.embedding.requires_grad_(False)  # the codebook follows its moving averages
    optimizer = torch.optim.Adam([p for p in codec.parameters() if p.requires_grad], lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS, eta_min=2e-5)
    codebook = None
    for step in range(STEPS):
        target = 2 * _crops(rng, BATCH) - 1
        grid = codec.encoder(target)
        vectors = grid.permute(0, 2, 3, 1).flatten(0, 2)
        commitment = torch.zeros(())
        if step == WARMUP:
            codebook = Codebook(codec, vectors.detach())
        if codebook is not None:
            codes = codec.vq_vae.nearest(vectors.detach())
            quantized = codec.vq_vae(codes)
            commitment = F.mse_loss(vectors, quantized)
            codebook.update(vectors.detach(), codes)
            grid = (vectors + (quantized - vectors).detach()).unflatten(0, (-1, 4, 4)).permute(0, 3, 1, 2)
        output = codec.decoder(grid)
        loss = F.mse_loss(output, target) + COMMITMENT * commitment
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 250 == 0:
            print(f"mask codec step {step + 1}: error {loss.item():.4f}, IoU {_iou(output, target):.3f}", flush=True)
    assert codebook is not None
    _save(path, codec, codebook)


def _crops(rng: np.random.Generator, count: int) -> Tensor:
    """Masks float [count, 1, 64, 64] in [0, 1] of random shapes."""
    crops: list[np.ndarray] = []
    while len(crops) < count:
        crops += [shape.crop() for shape in draw_scene(rng, size=16, number=False).shapes]
    return torch.from_numpy(np.stack(crops[:count]))[:, None]


def _iou(output: Tensor, target: Tensor) -> float:
    a, b = output > 0, target > 0
    return ((a & b).sum((1, 2, 3)) / (a | b).sum((1, 2, 3))).mean().item()


def _save(path: Path, codec: MaskCodec, codebook: Codebook) -> None:
    arrays = {name: tensor.detach().numpy() for name, tensor in codec.state_dict().items() if name != "vq_vae.embedding"}
    arrays["_vq_vae._embedding"] = codec.vq_vae.embedding.detach().numpy()
    arrays["_vq_vae._ema_w"] = codebook.sums.numpy()
    arrays["_vq_vae._ema_cluster_size"] = codebook.sizes.numpy()
    assert {name: array.shape for name, array in arrays.items()} == CONFIG.shapes()
    np.savez(path, **arrays)
