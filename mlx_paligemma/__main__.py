"""`python -m mlx_paligemma` is the command mlx-paligemma."""

from .cli.app import main

main()
