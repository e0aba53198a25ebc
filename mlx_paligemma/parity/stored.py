"""A run that was kept, and what has moved since."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..common.errors import CheckpointError, OptionError
from .report import ParityReport

NOTABLE = 2.0  # an error has moved if it has grown or shrunk by more than this factor
NOISE = 1e-7  # below this, relative errors are rounding of single numbers in float32 and move at will


def bless(report: ParityReport, file: Path) -> None:
    """Keep a run. Raises OSError when the file cannot be written."""
    file.write_text(json.dumps(report.as_dict(), indent=1), encoding="utf-8")


def read_blessed(file: Path) -> dict[str, Any]:
    """A run that was kept.

    Raises:
        OptionError: the file is missing, or not one of `--bless`.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if {"modules", "logits", "greedy", "origin"} <= data.keys():
            return dict(data)
    except (OSError, ValueError, AttributeError):
        pass
    raise OptionError(f"{file} is not a stored run; make one with --bless {file}")


def moved(before: Mapping[str, Any], report: ParityReport) -> tuple[str, ...]:
    """What is different now, a line each; none where nothing has moved.

    Raises:
        CheckpointError: the stored run is of another question, so that its figures mean nothing here.
    """
    now = report.as_dict()
    for name in ("model", "reference", "against", "dtype", "prompt"):
        old, new = before["origin"].get(name), now["origin"][name]
        if old != new:
            raise CheckpointError(f"the stored run has {name} {old!r}, this one {new!r}; compare runs of the same question")
    return (*_versions(before, now), *_modules(before, now), *_logits(before, now), *_greedy(before, now))


def _versions(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for kind in ("versions", "devices", "hashes"):
        old, new = before["origin"].get(kind, {}), now["origin"][kind]
        for name in {**old, **new}:
            if old.get(name) != new.get(name):
                yield f"{name}: {_short(old.get(name))} -> {_short(new.get(name))}"


def _modules(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    old = {module["name"]: module["relative_error"] for module in before["modules"]}
    new = {module["name"]: module["relative_error"] for module in now["modules"]}
    for name in {**old, **new}:
        if name not in old or name not in new:
            yield f"module {name}: {'new' if name in new else 'gone'}"
        elif _has_moved(old[name], new[name]):
            yield f"module {name}: relative error {_error(old[name])} -> {_error(new[name])}"


def _logits(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for stage in ("logits", "decoding"):
        old, new = before.get(stage) or {}, now[stage] or {}
        if _has_moved(old.get("relative_error"), new.get("relative_error")):
            yield f"{stage}: relative error {_error(old.get('relative_error'))} -> {_error(new.get('relative_error'))}"
        if old.get("top1_agreement") != new.get("top1_agreement"):
            yield f"{stage}: top-1 agreement {old.get('top1_agreement')} -> {new.get('top1_agreement')}"


def _greedy(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    old, new = before["greedy"] or {}, now["greedy"] or {}
    for name, words in (("tokens", "MLX's tokens"), ("reference_tokens", "the reference's tokens")):
        if old.get(name) != new.get(name):
            yield f"greedy: {words} {old.get(name)} -> {new.get(name)}"


def _has_moved(old: float | None, new: float | None) -> bool:
    if old is None or new is None:
        return old is not new
    old, new = max(old, NOISE), max(new, NOISE)
    return max(old / new, new / old) > NOTABLE


def _error(value: float | None) -> str:
    return "none" if value is None else f"{value:.1e}"


def _short(value: str | None) -> str:
    return "none" if value is None else value[:12] if len(value) == 64 else value
