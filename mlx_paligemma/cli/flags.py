"""The flags that several commands have, each with its one meaning and text."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer


class BackendName(StrEnum):
    """Choices of --backend."""

    mlx = "mlx"
    torch = "torch"


class DtypeName(StrEnum):
    """Choices of --dtype."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


Model = Annotated[str | None, typer.Option(help="Checkpoint folder or Hub id. Left out: the bundled demo.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
Backend = Annotated[BackendName, typer.Option(help="MLX, or the PyTorch reference.")]
Dtype = Annotated[DtypeName | None, typer.Option(help="Numbers to compute in. Left out: as stored.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-m", help="New tokens per answer at most.")]
Temperature = Annotated[float, typer.Option("--temp", "--temperature", help="0 is greedy.")]
TopP = Annotated[float, typer.Option(help="Keep the likeliest tokens up to this probability.")]
TopK = Annotated[int, typer.Option(help="Keep this many tokens; 0 keeps all.")]
MinP = Annotated[float, typer.Option(help="Keep tokens this likely, compared with the likeliest.")]
Seed = Annotated[int | None, typer.Option(help="For answers that can be repeated.")]
Grammar = Annotated[bool, typer.Option("--grammar/--no-grammar", help="Hold boxes and masks to their form.")]
MinScore = Annotated[float, typer.Option(help="Leave out objects with a lower score (0 to 1).")]
MpsFallback = Annotated[
    bool, typer.Option("--mps-fallback", help="With --backend torch on a Mac: what MPS cannot do runs on the CPU.")
]
MpsMemoryFraction = Annotated[
    float | None, typer.Option(help="With --backend torch on a Mac: share of the GPU's memory to use at most, such as 0.7.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say on stderr what the answers cost.")]
