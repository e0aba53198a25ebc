"""What a comparison must show, and whether it does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from .measured import CaseResult

PEER = "mlx-vlm"
FASTER_FIRST, FASTER_DECODE = 2.5, 1.05  # times, at least
MEMORY = {224: 0.75, 448: 0.5}  # share of the peer's peak, at most, by pixels
HOST, HELP_S, IMPORT_S = 0.5, 0.3, 0.05  # share of the peer's time to build a step; seconds


class Outcome(StrEnum):
    """Of one requirement."""

    met = "met"
    missed = "missed"
    refused = "refused"  # the machine did not hold still


@dataclass(frozen=True)
class Verdict:
    """One requirement."""

    subject: str
    found: float
    limit: float
    at_least: bool  # or at most
    drift: float = 0.0
    steady: bool = True

    @property
    def outcome(self) -> Outcome:
        """A machine that drifts refuses both ways."""
        if not self.steady:
            return Outcome.refused
        return Outcome.met if (self.found >= self.limit if self.at_least else self.found <= self.limit) else Outcome.missed

    def as_dict(self) -> dict[str, Any]:
        """With the outcome."""
        return asdict(self) | {"outcome": self.outcome}


def judge(results: list[CaseResult], extra: dict[str, Any]) -> list[Verdict]:
    """All requirements that what was measured can answer. In bfloat16 nothing is required: the CPU has no fast product for it."""
    asked = [result for result in results if PEER in result.runs and result.case.dtype == "float32"]
    of_cases = [verdict for result in asked for verdict in _of_case(result)]
    return [*of_cases, *_of_host(extra.get("host", {})), *_of_start_up(extra.get("start_up", {}))]


def _of_case(result: CaseResult) -> Iterator[Verdict]:
    name = result.case.name
    for title, metric, limit in (
        ("time to first token, times faster", "time_to_first_token_s", FASTER_FIRST),
        ("decoding, times faster", "decode_s", FASTER_DECODE),
    ):
        ratio = result.ratio(PEER, metric)
        assert ratio is not None
        yield Verdict(f"{name}: {title}", ratio.value, limit, True, ratio.drift, ratio.is_steady)
    ratio, most = result.ratio(PEER, "peak_memory_bytes"), MEMORY.get(result.case.resolution)
    if ratio is not None and most is not None:
        yield Verdict(f"{name}: peak memory, share of theirs", 1 / ratio.value, most, False, ratio.drift, ratio.is_steady)


def _of_host(host: dict[str, Any]) -> Iterator[Verdict]:
    for size, ways in host.items():
        yield Verdict(f"{size}: host time of a step as on a GPU, share of theirs", ways["as_on_a_gpu"]["ratio"], HOST, False)


def _of_start_up(start_up: dict[str, Any]) -> Iterator[Verdict]:
    for name, limit in (("help_s", HELP_S), ("import_s", IMPORT_S)):
        if name in start_up:
            yield Verdict(f"start-up, {name}", start_up[name], limit, False)
