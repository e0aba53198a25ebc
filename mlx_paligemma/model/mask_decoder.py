"""The mask codec: 64 x 64 masks to 16 codes and back, MLX. Mirror of torch_ref/mask_decoder.py.

Paper: All in Tokens, arXiv:2301.02229 (a VQ-VAE whose 128 codes are the <seg> tokens).
Axes: B masks, C channels. Everything is channels last: [B, 64, 64, 1].
"""

import mlx.core as mx
import mlx.nn as nn

from ..common.mask_codec import MaskCodecConfig


class ResidualBlock(nn.Module):
    """Three convolutions and the sum; no activation after the sum."""

    def __init__(self, width: int):
        super().__init__()
        self.net = [
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 1),
        ]  # fmt: skip

    def __call__(self, x: mx.array) -> mx.array:
        """[B, height, width, C] -> the same shape."""
        return x + _run(self.net, x)


class VectorQuantizer(nn.Module):
    """The codebook."""

    def __init__(self, config: MaskCodecConfig):
        super().__init__()
        self.embedding = mx.zeros((config.num_codes, config.embedding_dim))

    def __call__(self, codes: mx.array) -> mx.array:
        """Int [B, 16] -> [B, 16, E]."""
        return self.embedding[codes]

    def nearest(self, x: mx.array) -> mx.array:
        """[B, 16, E] -> the codes int [B, 16] of the rows nearest in squared distance."""
        distance = self.embedding.square().sum(-1) - 2 * x @ self.embedding.T
        return distance.argmin(-1)


class MaskCodec(nn.Module):
    """Encoder, codebook and decoder. Layer numbers are those of the published file."""

    def __init__(self, config: MaskCodecConfig):
        super().__init__()
        a, b, c, d = config.widths
        self.encoder = [
            nn.Conv2d(1, a, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(a, b, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(b, c, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(c, d, 4, 2, 1), nn.ReLU(),
            ResidualBlock(d),
            ResidualBlock(d),
            nn.Conv2d(d, config.embedding_dim, 1),
        ]  # fmt: skip
        self.vq_vae = VectorQuantizer(config)
        self.decoder = [
            nn.Conv2d(config.embedding_dim, d, 1), nn.ReLU(),
            ResidualBlock(d),
            ResidualBlock(d),
            nn.ConvTranspose2d(d, d, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(d, c, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(c, b, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(b, a, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(a, 1, 1),
        ]  # fmt: skip

    def encode(self, masks: mx.array) -> mx.array:
        """Masks float [B, 64, 64, 1] in [0, 1] -> codes int [B, 16], the 4 x 4 grid row by row."""
        return self.vq_vae.nearest(_run(self.encoder, 2 * masks - 1).flatten(1, 2))

    def decode(self, codes: mx.array) -> mx.array:
        """Codes int [B, 16] -> masks float [B, 64, 64, 1], about -1 outside and 1 inside."""
        return _run(self.decoder, mx.unflatten(self.vq_vae(codes), 1, (4, 4)))


def _run(layers: list[nn.Module], x: mx.array) -> mx.array:
    """A list of layers one after the other (MLX's Sequential would put "layers" into every parameter's name)."""
    for layer in layers:
        x = layer(x)
    return x
