"""How far a result may be from NumPy's, by the numbers that it was computed in."""

from __future__ import annotations

from typing import Any

import numpy as np

from .check import Check, failed, ok, warning

# Of the largest value: some roundings of each kind of number, in sums of some hundred products.
LIMITS = {"float32": 1e-5, "float16": 4e-3, "bfloat16": 3e-2}
TF32_LIMIT = 3e-3  # products of float32 numbers cut to ten bits, as some GPUs do


def relative_error(found: Any, expected: Any) -> float:
    """The largest difference, as a share of the largest expected value. Whatever is not finite counts as infinitely wrong."""
    found, expected = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def judged(errors: dict[str, float], advice: str, tf32_advice: str, limits: dict[str, float] | None = None) -> Check:
    """The check of errors by dtype. Without `limits` those of the dtype hold."""
    detail = ", ".join(f"{dtype} {error:.0e}" for dtype, error in errors.items())
    wrong = [dtype for dtype, error in errors.items() if not error <= (limits or LIMITS)[dtype]]
    if not wrong:
        return ok(detail)
    if limits is None and wrong == ["float32"] and errors["float32"] <= TF32_LIMIT:
        return warning(f"{detail}: float32 is rounded as coarsely as TF32", tf32_advice)
    return failed(f"{detail}: the results are wrong", advice)
