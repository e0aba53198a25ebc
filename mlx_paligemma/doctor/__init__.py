"""What this machine can do with PaliGemma: every line of the report has run what it speaks of.

check.py holds the values, the other files the probes, each file one subject; `examine` runs them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .check import REPORT, Check, Probes, checked, failed


def examine() -> Iterator[Check]:
    """All checks, one after the other. None of them raises: what goes wrong is its own line."""
    for name, section in _sections().items():
        try:
            probes = section()
        except Exception as error:  # noqa: BLE001 - a broken package may raise anything when it is imported
            probes = {name: _failing(error)}
        for title, probe in probes.items():
            yield checked(title, probe)


def _sections() -> dict[str, Callable[[], Probes]]:
    from .demo import demo_probes
    from .hub import hub_probes
    from .machine import machine_probes
    from .on_mlx import mlx_probes
    from .on_torch import torch_probes
    from .speed import speed_probes

    return {
        "machine": machine_probes,
        "mlx": mlx_probes,
        "torch": torch_probes,
        "demo": demo_probes,
        "speed": speed_probes,
        "Hub": hub_probes,
    }


def _failing(error: Exception) -> Callable[[], Check]:
    return lambda: failed(f"{type(error).__name__}: {error}", f"install the package again; if that does not help, {REPORT}")
