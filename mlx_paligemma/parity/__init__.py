"""Parity: where MLX and a PyTorch reference part, module by module, then from pixels to logits, then token by token."""
