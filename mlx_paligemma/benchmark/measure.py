"""A whole measurement: the machine's rates, the model, one run that warms up, and the trials."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import mlx.core as mx

from ..common.errors import BackendError, OptionError
from ..doctor.on_mlx import device_kind
from ..fused_layers import FusedAttention, LastAttention
from ..model.paligemma import PaliGemma
from .pairs import Ratio, in_blocks, paired_ratio
from .rates import measure_rates
from .report import Report, report
from .requests import random_inputs
from .setup import Plan, Setup, open_model, plan
from .trial import Trial, run_trial, vision_seconds

Tell = Callable[[str], None]  # what is being done now


@dataclass(frozen=True)
class KernelChoice:
    """Metal's fused attention kernel in the prefill, where MLX prefers another: what forcing it changes."""

    plan: Plan
    time_to_first_token: Ratio  # of the default over the forced one: above 1, forcing is faster
    peak_memory: Ratio


def measure(setup: Setup, tell: Tell) -> Report:
    """Measure what the setup says.

    Raises:
        OptionError, PromptError, CheckpointError, TooLargeError: it cannot be measured here.
    """
    planned = plan(setup)
    tell("measuring what the machine can do")
    rates = measure_rates(getattr(mx, planned.dtype))
    tell(f"{'loading' if planned.folder else 'making'} {setup.name}")
    mx.reset_peak_memory()
    model = open_model(planned)
    load_peak = mx.get_peak_memory()
    inputs = random_inputs(planned.config, setup.prompt_tokens, setup.batch)
    tell("warming up")
    run_trial(model, inputs, setup.generation_tokens)
    trials, vision = [], []
    for number in range(1, setup.trials + 1):
        tell(f"trial {number} of {setup.trials}")
        vision.append(vision_seconds(model, inputs))
        trials.append(run_trial(model, inputs, setup.generation_tokens))
    return report(planned, rates, trials, median(vision), load_peak)


def compare_kernels(setup: Setup, tell: Tell) -> KernelChoice:
    """Prefill with and without `force_fused`, in turn.

    Raises:
        BackendError: there is no Metal here.
        OptionError: the model's attention has a soft cap, which no kernel of MLX's knows: there is nothing to choose.
    """
    if device_kind() != "Metal":
        raise BackendError(f"--ab force-fused compares kernels of Metal, and MLX computes on {device_kind()} here; run it on a Mac")
    planned = plan(setup)
    if planned.config.text.attn_logit_softcapping is not None:
        raise OptionError("--ab force-fused is for PaliGemma 1; PaliGemma 2 caps its attention scores, which no fused kernel does")
    tell(f"{'loading' if planned.folder else 'making'} {setup.name}")
    model = open_model(planned)
    inputs = random_inputs(planned.config, setup.prompt_tokens, setup.batch)

    def side(forced: bool) -> Trial:
        tell(f"{'forced' if forced else 'default'} kernel")
        force_fused(model, forced)
        return run_trial(model, inputs, 2)

    sides = [partial(side, True), partial(side, False)]
    in_blocks(sides, 1)
    forced, default = in_blocks(sides, setup.trials)
    first, peak = (
        paired_ratio([getattr(trial, name) for trial in forced], [getattr(trial, name) for trial in default])
        for name in ("time_to_first_token_s", "peak_memory_bytes")
    )
    return KernelChoice(planned, first, peak)


def force_fused(model: PaliGemma, forced: bool) -> None:
    """Set the option of `fuse` on a model that has been fused already. Its compiled decoding step stays as it is."""
    for module in model.language_model.modules():
        if isinstance(module, FusedAttention | LastAttention):
            module.attend.force_fused = forced
