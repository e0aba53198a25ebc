"""The mask codec: 64 x 64 masks to 16 codes and back, PyTorch. Mirror of mlx_paligemma/model/mask_decoder.py.

Paper: All in Tokens, arXiv:2301.02229 (a VQ-VAE whose 128 codes are the <seg> tokens).
Axes: B masks, C channels. Pictures are channels last at the door: [B, 64, 64, 1].
"""

import torch
from torch import Tensor, nn

from mlx_paligemma.common.mask_codec import MaskCodecConfig


class ResidualBlock(nn.Module):
    """Three convolutions and the sum; no activation after the sum."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, height, width] -> the same shape."""
        return x + self.net(x)


class VectorQuantizer(nn.Module):
    """The codebook."""

    def __init__(self, config: MaskCodecConfig):
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(config.num_codes, config.embedding_dim))

    def forward(self, codes: Tensor) -> Tensor:
        """Int [B, 16] -> [B, 16, E]."""
        return self.embedding[codes]

    def nearest(self, x: Tensor) -> Tensor:
        """[B, 16, E] -> the codes int [B, 16] of the rows nearest in squared distance."""
        distance = self.embedding.square().sum(-1) - 2 * x @ self.embedding.T
        return distance.argmin(-1)


class MaskCodec(nn.Module):
    """Encoder, codebook and decoder. Layer numbers are those of the published file."""

    def __init__(self, config: MaskCodecConfig):
        super().__init__()
        a, b, c, d = config.widths
        self.encoder = nn.Sequential(
            nn.Conv2d(1, a, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(a, b, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(b, c, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(c, d, 4, 2, 1), nn.ReLU(),
            ResidualBlock(d),
            ResidualBlock(d),
            nn.Conv2d(d, config.embedding_dim, 1),
        )  # fmt: skip
        self.vq_vae = VectorQuantizer(config)
        self.decoder = nn.Sequential(
            nn.Conv2d(config.embedding_dim, d, 1), nn.ReLU(),
            ResidualBlock(d),
            ResidualBlock(d),
            nn.ConvTranspose2d(d, d, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(d, c, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(c, b, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(b, a, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(a, 1, 1),
        )  # fmt: skip

    def encode(self, masks: Tensor) -> Tensor:
        """Masks float [B, 64, 64, 1] in [0, 1] -> codes int [B, 16], the 4 x 4 grid row by row."""
        grid = self.encoder(2 * masks.permute(0, 3, 1, 2) - 1)
        return self.vq_vae.nearest(grid.flatten(2).transpose(1, 2))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes int [B, 16] -> masks float [B, 64, 64, 1], about -1 outside and 1 inside."""
        grid = self.vq_vae(codes).transpose(1, 2).unflatten(2, (4, 4))
        return self.decoder(grid).permute(0, 2, 3, 1)
