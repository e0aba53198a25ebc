"""MLX against the PyTorch reference, and the reference against transformers."""
