"""One line of the report, and how a probe becomes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

REPORT = "report it with the output of: mlx-paligemma doctor --json"


class State(StrEnum):
    """How a check ended. Only `failed` makes the program fail."""

    ok = "ok"
    warning = "warning"
    failed = "failed"
    skipped = "skipped"


@dataclass(frozen=True)
class Check:
    """What was found, and what to do about it."""

    name: str
    state: State
    detail: str
    advice: str = ""  # "": nothing to do


Probe = Callable[[], Check]  # looks at one thing; the check that it gives has no name yet
Probes = dict[str, Probe]  # by the name of their check


def ok(detail: str, advice: str = "") -> Check:
    """It works."""
    return Check("", State.ok, detail, advice)


def warning(detail: str, advice: str) -> Check:
    """Something is missing or slow that not everybody needs."""
    return Check("", State.warning, detail, advice)


def failed(detail: str, advice: str) -> Check:
    """Something that matters does not work."""
    return Check("", State.failed, detail, advice)


def skipped(detail: str) -> Check:
    """It could not be looked at."""
    return Check("", State.skipped, detail)


def guarded(probe: Probe, advice: str = REPORT) -> Check:
    """Run a probe. What it raises becomes a failed check with this advice."""
    try:
        return probe()
    except Exception as error:  # noqa: BLE001 - one broken thing must not hide the others
        return failed(f"{type(error).__name__}: {error}", advice)


def checked(name: str, probe: Probe) -> Check:
    """The line that a probe gives under this name."""
    check = guarded(probe)
    return replace(check, name=name, detail=" ".join(check.detail.split()))
