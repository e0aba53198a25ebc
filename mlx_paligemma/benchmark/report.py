"""What a measurement found, and what the machine's own rates predict for it (roofline.py)."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from statistics import median
from typing import Any

import mlx.core as mx

from .. import __version__
from ..common.memory import packed_bytes
from ..doctor.on_mlx import device_kind
from ..roofline import decode_bytes, kv_bytes_per_token, prefill_work, ttft_bound
from .rates import Rates
from .setup import Plan, needed_bytes
from .trial import Trial


@dataclass(frozen=True)
class Row:
    """One figure beside its prediction."""

    name: str  # of the JSON field; its ending is the unit
    measured: float
    predicted: float | None  # from the rates; None: nothing predicts it
    higher_is_better: bool = False

    @property
    def share(self) -> float | None:
        """Of the roofline: 1 is what the machine's own rates allow. For memory, what was used of what was reckoned with."""
        if self.predicted is None:
            return None
        upwards = self.higher_is_better or self.name.endswith("bytes")
        return self.measured / self.predicted if upwards else self.predicted / self.measured


@dataclass(frozen=True)
class Report:
    """The medians of all trials."""

    plan: Plan
    rates: Rates
    rows: tuple[Row, ...]
    trials: tuple[Trial, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the figures by name, then `predicted` and `share` of them, and what they were measured on."""
        setup, shown = self.plan.setup, [row for row in self.rows if row.predicted is not None]
        return {
            **{row.name: row.measured for row in self.rows},
            "predicted": {row.name: row.predicted for row in shown},
            "share": {row.name: row.share for row in shown},
            "rates": {
                "gemv_gb_s": self.rates.gemv_bytes_s / 1e9,
                "gemm_tflops": self.rates.gemm_flops / 1e12,
                "gemm_size": self.rates.gemm_size,
            },
            "model": setup.name,
            "random_weights": self.plan.folder is None,
            "dtype": self.plan.dtype,
            "bits": setup.quantised,
            "resolution": self.plan.config.vision.image_size,
            "image_tokens": self.plan.config.vision.num_patches,
            "prompt_tokens": setup.prompt_tokens,
            "generation_tokens": setup.generation_tokens,
            "batch": setup.batch,
            "trials": {
                "time_to_first_token_s": [trial.time_to_first_token_s for trial in self.trials],
                "decode_s": [trial.decode_s for trial in self.trials],
            },
            "machine": machine(),
        }


def machine() -> dict[str, str]:
    """What the figures were measured on, with what, and when."""
    return {
        "chip": str(mx.device_info().get("device_name", platform.machine())),
        "device": device_kind(),
        "system": f"{platform.system()} {platform.mac_ver()[0] or platform.release()}",
        "python": platform.python_version(),
        "mlx": version("mlx"),
        "mlx_paligemma": __version__,
        "date": datetime.now(UTC).date().isoformat(),
    }


def _bytes_per_step(plan: Plan) -> float:
    """What one step of decoding reads: the weights of the text model, and the keys and values of all rows."""
    context = plan.context + plan.setup.generation_tokens // 2
    if not plan.packings:
        return plan.bits / 16 * decode_bytes(plan.config, context, batch=plan.setup.batch)
    cache = plan.bits / 16 * plan.setup.batch * context * kv_bytes_per_token(plan.config.text)
    return cache + packed_bytes(plan.config, plan.packings, plan.bits, only="language_model.")


def report(plan: Plan, rates: Rates, trials: Sequence[Trial], vision_s: float, load_peak: int) -> Report:
    """Medians beside predictions."""
    setup = plan.setup
    first = median(trial.time_to_first_token_s for trial in trials)
    speed = setup.batch * (setup.generation_tokens - 1) / median(trial.decode_s for trial in trials)
    work = prefill_work(plan.config, setup.prompt_tokens, setup.batch)
    bound = ttft_bound(work, rates.gemm_flops)
    read = _bytes_per_step(plan)
    prompt = setup.batch * plan.context
    rows = (
        Row("vision_ms", 1e3 * vision_s, 1e3 * (work.vision + work.projector) / rates.gemm_flops),
        Row("time_to_first_token_s", first, bound),
        Row("prompt_tps", prompt / first, prompt / bound, higher_is_better=True),
        Row("generation_tps", speed, setup.batch * rates.gemv_bytes_s / read, higher_is_better=True),
        Row("peak_memory_bytes", median(trial.peak_memory_bytes for trial in trials), needed_bytes(plan)),
        Row("load_peak_bytes", load_peak, None),
    )
    return Report(plan, rates, rows, tuple(trials))
