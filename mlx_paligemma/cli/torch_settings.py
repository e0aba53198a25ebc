"""What torch reads from the environment when it is imported: set from flags, before that."""

from __future__ import annotations

import os

from ..common.errors import OptionError

LOW_TO_HIGH = 0.8  # torch's own marks, 1.4 and 1.7, stand about so


def prepare_torch(mps_fallback: bool, mps_memory_fraction: float | None) -> None:
    """Set what was asked for. Call it before a backend is opened.

    torch refuses to start where the high mark is below the low one, which is 1.4 unless it is set too: both are.

    Raises:
        OptionError: the fraction is not above 0 and at most 1.
    """
    if mps_memory_fraction is not None:
        if not 0 < mps_memory_fraction <= 1:
            raise OptionError(f"--mps-memory-fraction is {mps_memory_fraction:g}; choose more than 0 and at most 1, such as 0.7")
        os.environ["PYTORCH_MPS_HIGH_WATERMARK_RATIO"] = f"{mps_memory_fraction:g}"
        os.environ["PYTORCH_MPS_LOW_WATERMARK_RATIO"] = f"{LOW_TO_HIGH * mps_memory_fraction:g}"
    if mps_fallback:
        os.environ["PYTORCH_ENABLE_MPS_FALLBACK"] = "1"
