"""One side of a comparison: a process that loads its model once, and then runs each time it is told to.

Runs in every implementation's own environment, so it needs NumPy alone. It is given a job as JSON in its one argument, says on
stdout what it has loaded, and then answers each line on stdin, a number of tokens, with what generating them cost.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Job:
    """What to load."""

    arm: str
    checkpoint: str  # folder
    inputs: str  # file of arrays: ids int32 [B, L], pixels float32 [B, 1, height, width, 3] in [-1, 1]
    dtype: str
    device: str = "auto"  # of torch

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids and pixels."""
        with np.load(self.inputs) as stored:
            return stored["ids"], stored["pixels"]


@dataclass(frozen=True)
class Cost:
    """What one run took."""

    time_to_first_token_s: float  # from arrays in memory to the first token in hand
    decode_s: float  # from the first token to the last
    first_token_cpu_s: float  # of all threads, in the same span; what other programs take of a busy machine is not in it
    decode_cpu_s: float
    peak_memory_bytes: int | None  # that the framework held at once, weights included; None where it does not count
    token_ids: list[int]  # of the first row


class Stopwatch:
    """Takes the time of one run, token by token."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []
        self.token()

    def token(self) -> None:
        """A token is in hand."""
        self.times.append((time.perf_counter(), time.process_time()))

    def cost(self, peak_memory_bytes: int | None, token_ids: list[int]) -> Cost:
        """Of the run."""
        begun, first, last = self.times[0], self.times[1], self.times[-1]
        spans = (first[0] - begun[0], last[0] - first[0], first[1] - begun[1], last[1] - first[1])
        return Cost(*spans, peak_memory_bytes, token_ids)


@dataclass(frozen=True)
class Arm:
    """A loaded implementation."""

    about: dict[str, Any]  # versions, device
    run: Callable[[int], Cost]


def serve(open_arm: Callable[[Job], Arm]) -> None:
    """Load, then run on demand until stdin ends. Whatever libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    job = Job(**json.loads(sys.argv[1]))
    arm = open_arm(job)
    _say(replies, {"about": arm.about, "hashes": hashes(job), "load_peak_bytes": process_peak()})
    for line in sys.stdin:
        cost = asdict(arm.run(int(line)))
        _say(replies, cost | {"process_peak_bytes": process_peak()})


def hashes(job: Job) -> dict[str, str]:
    """SHA-256 of what was read, so that nobody can compare different things by mistake."""
    ids, pixels = job.arrays()
    weights = hashlib.sha256()
    for path in sorted(Path(job.checkpoint).glob("*.safetensors")):
        with path.open("rb") as file:
            weights.update(hashlib.file_digest(file, "sha256").digest())
    found = {"ids": hashlib.sha256(ids.tobytes()), "pixels": hashlib.sha256(pixels.tobytes()), "weights": weights}
    return {name: digest.hexdigest() for name, digest in found.items()}


def process_peak() -> int:
    """Bytes that the process has had in memory at most, since it began. Linux's own count starts with the parent's, /proc's not."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes
    return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def _say(replies: Any, data: dict[str, Any]) -> None:
    replies.write(json.dumps(data) + "\n")
    replies.flush()
