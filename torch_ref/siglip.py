"""SigLIP vision tower, PyTorch. Mirror of mlx_paligemma/model/siglip.py.

Paper: Sigmoid Loss for Language Image Pre-Training, arXiv:2303.15343; the blocks are those of ViT, arXiv:2010.11929.
Axes: B pictures, P patches, D hidden_size, N heads, H head size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlx_paligemma.common.config import SiglipConfig


class SiglipVisionEmbeddings(nn.Module):
    """Pictures to patch vectors: one linear map per patch, plus a learned row per patch position."""

    def __init__(self, config: SiglipConfig):
        super().__init__()
        self.patch_embedding = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_size, config.patch_size)
        self.position_embedding = nn.Embedding(config.num_patches, config.hidden_size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, height, width, 3] in [-1, 1] -> [B, P, D], patches row by row."""
        pixels = pixel_values.permute(0, 3, 1, 2).to(self.patch_embedding.weight.dtype)
        return self.patch_embedding(pixels).flatten(2).transpose(1, 2) + self.position_embedding.weight


class SiglipAttention(nn.Module):
    """Multi-head self-attention with biases and no mask."""

    def __init__(self, config: SiglipConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.scale = (config.hidden_size // config.num_attention_heads) ** -0.5
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[B, P, D] -> [B, P, D]."""
        q, k, v = (self._heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        scores = q @ k.transpose(-1, -2) * self.scale
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        """[B, P, D] -> [B, N, P, H]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class SiglipMLP(nn.Module):
    """Two linear maps with the tanh GELU between them."""

    def __init__(self, config: SiglipConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[B, P, D] -> [B, P, D]."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SiglipEncoderLayer(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: SiglipConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = SiglipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = SiglipMLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """[B, P, D] -> [B, P, D]."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class SiglipEncoder(nn.Module):
    """The stack of blocks."""

    def __init__(self, config: SiglipConfig):
        super().__init__()
        self.layers = nn.ModuleList(SiglipEncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor) -> Tensor:
        """[B, P, D] -> [B, P, D]."""
        for layer in self.layers:
            x = layer(x)
        return x


class SiglipVisionModel(nn.Module):
    """Embeddings, encoder and final layer norm. There is no pooling head: every patch becomes an image token."""

    def __init__(self, config: SiglipConfig):
        super().__init__()
        self.embeddings = SiglipVisionEmbeddings(config)
        self.encoder = SiglipEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, height, width, 3] in [-1, 1] -> [B, P, D]."""
        return self.post_layernorm(self.encoder(self.embeddings(pixel_values)))
