"""What both backends share: NumPy, Pillow and sentencepiece only, neither mlx nor torch."""
