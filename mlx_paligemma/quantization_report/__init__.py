"""What quantising costs a model, measured by its answers: `mlx-paligemma evaluate-quantization`.

`recipes` are the forms tried, `quantised` makes a model of each, `answers` asks them all the same prompts, `agreement` and
`divergence` compare them with the unquantised model, `evaluate` goes through the whole, and `report` holds the figures.
"""
