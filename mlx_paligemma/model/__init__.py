"""The MLX network, file by file and name by name the mirror of torch_ref."""
