"""A case, measured: what every run of every arm cost, and the ratios of the peers to ours."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from mlx_paligemma.benchmark.pairs import Ratio, in_blocks, paired_ratio
from mlx_paligemma.roofline import decode_bytes, prefill_work

from .arm import Job
from .case import Case
from .processes import OURS, Place, Running, running

Runs = list[dict[str, Any]]  # costs of one arm's runs, in order
METRICS = (
    "time_to_first_token_s",
    "decode_s",
    "first_token_cpu_s",
    "decode_cpu_s",
    "peak_memory_bytes",
    "process_peak_bytes",
)


@dataclass(frozen=True)
class CaseResult:
    """All arms' runs; the first arm is ours."""

    case: Case
    loaded: dict[str, dict[str, Any]]  # what each arm said after loading
    runs: dict[str, Runs]
    tokens: int  # new ones per run
    prompt_tokens: int

    @property
    def peers(self) -> list[str]:
        """The arms beside ours."""
        return [name for name in self.runs if name != OURS]

    def median(self, arm: str, metric: str) -> float | None:
        """Of all runs; None where the arm does not count it."""
        values = [run[metric] for run in self.runs[arm]]
        return None if None in values else median(values)

    def tokens_per_second(self, arm: str) -> float:
        """Of all rows together."""
        seconds = self.median(arm, "decode_s")
        assert seconds is not None
        return self.case.batch * (self.tokens - 1) / seconds

    def ratio(self, peer: str, metric: str) -> Ratio | None:
        """The peer's cost over ours: above 1, ours is better. None where one of them does not count it."""
        ours, theirs = ([run[metric] for run in self.runs[arm]] for arm in (OURS, peer))
        return None if None in ours or None in theirs else paired_ratio(ours, theirs)

    def same_tokens(self, peer: str) -> int:
        """Greedy tokens that agree before the first that does not."""
        ours, theirs = (self.runs[arm][0]["token_ids"] for arm in (OURS, peer))
        return next((index for index, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]), len(ours))

    def shares(self, arm: str) -> dict[str, float]:
        """Of the rates that our arm measured in the same run: first token of the GEMM rate, decoding of the GEMV bandwidth."""
        rates = self.loaded[OURS]["about"]["rates"]
        config, scale = self.case.config, 2 if self.case.dtype == "float32" else 1
        context = config.vision.num_patches + self.prompt_tokens + self.tokens // 2
        read = scale * decode_bytes(config, context, batch=self.case.batch) / self.case.batch
        first = self.median(arm, "time_to_first_token_s")
        assert first is not None
        work = prefill_work(config, self.prompt_tokens, self.case.batch).total
        return {"gemm": work / first / rates["gemm_flops"], "gemv": self.tokens_per_second(arm) * read / rates["gemv_bytes_s"]}

    def as_dict(self) -> dict[str, Any]:
        """For the result file: every run, the medians, and what they come to."""
        arms = {name: self.loaded[name] | self._figures(name) for name in self.runs}
        shape = {"tokens": self.tokens, "prompt_tokens": self.prompt_tokens, "pairs": len(self.runs[OURS])}
        return {"case": self.case.name, **shape, "arms": arms, "against": {peer: self._against(peer) for peer in self.peers}}

    def _figures(self, arm: str) -> dict[str, Any]:
        medians = {metric: self.median(arm, metric) for metric in METRICS}
        runs = [{metric: run[metric] for metric in METRICS} for run in self.runs[arm]]
        return medians | {"generation_tps": self.tokens_per_second(arm), "share": self.shares(arm), "runs": runs}

    def _against(self, peer: str) -> dict[str, Any]:
        ratios = {metric: self.ratio(peer, metric) for metric in METRICS}
        found = {name: asdict(ratio) | {"steady": ratio.is_steady} for name, ratio in ratios.items() if ratio is not None}
        return found | {"same_tokens": self.same_tokens(peer)}


def measure_case(
    case: Case, peers: list[str], place: Place, scratch: Path, pairs: int, tokens: int, prompt_tokens: int
) -> CaseResult:
    """Write the checkpoint, load all arms, warm them up, run them in turn. Raises ArmError."""
    checkpoint, inputs = case.write(scratch, prompt_tokens)
    job = Job(OURS, str(checkpoint), str(inputs), case.dtype)
    with running([OURS, *peers], job, place, scratch) as arms:
        for arm in arms:
            arm.run(tokens)
        runs = in_blocks([partial(_run, arm, tokens, place.pause) for arm in arms], pairs)
        loaded = {arm.name: arm.loaded for arm in arms}
        return CaseResult(case, loaded, {arm.name: costs for arm, costs in zip(arms, runs, strict=True)}, tokens, prompt_tokens)


def _run(arm: Running, tokens: int, pause: float) -> dict[str, Any]:
    return arm.run(tokens, pause)
