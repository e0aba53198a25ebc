"""One case of a comparison: which model, how large a picture, in what dtype, how many rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import typer

from mlx_paligemma.benchmark.requests import random_inputs
from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.common.errors import PaliGemmaError

from .random_checkpoint import config_of, write_checkpoint


@dataclass(frozen=True)
class Case:
    """`size` is one of random_checkpoint.SMALL, or a released size."""

    size: str
    resolution: int  # pixels
    dtype: str
    batch: int = 1

    @classmethod
    def parse(cls, text: str) -> Case:
        """SIZE:PIXELS:DTYPE[:ROWS]. Ends the program with one line where it is something else."""
        try:
            size, pixels, dtype, *rows = text.split(":")
            case = cls(size, int(pixels), dtype, *map(int, rows))
            config_of(case.size, case.resolution)
        except (ValueError, TypeError, PaliGemmaError) as error:
            raise typer.BadParameter(f"{text}: a case is SIZE:PIXELS:DTYPE[:ROWS], like small-pg2:448:float32 ({error})") from None
        return case

    @property
    def name(self) -> str:
        """As it is asked for."""
        return f"{self.size}:{self.resolution}:{self.dtype}" + (f":{self.batch}" if self.batch > 1 else "")

    @property
    def config(self) -> PaliGemmaConfig:
        """Of its model."""
        return config_of(self.size, self.resolution)

    def write(self, folder: Path, prompt_tokens: int) -> tuple[Path, Path]:
        """The checkpoint's folder and the file of inputs, for all arms."""
        checkpoint, inputs = folder / "checkpoint", folder / "inputs.npz"
        checkpoint.mkdir()
        write_checkpoint(checkpoint, self.config, self.dtype)
        asked = random_inputs(self.config, prompt_tokens, self.batch)
        np.savez(inputs, ids=asked.input_ids, pixels=asked.pixel_values)
        return checkpoint, inputs
