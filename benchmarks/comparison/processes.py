"""Arms as processes: started in their environments, kept alive, told to run, ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .arm import Job

SCRIPTS_FOLDER = Path(__file__).parent.parent
OURS = "mlx-paligemma"
SCRIPTS = {OURS: "bench_mlx.py", "torch_ref": "bench_torch.py", "mlx-vlm": "bench_peers.py", "transformers": "bench_peers.py"}
PEERS = ("mlx-vlm", "transformers")  # that have environments of their own
ON_MLX = (OURS, "mlx-vlm")


class ArmError(Exception):
    """An arm could not start or run. The message is the last line that it wrote."""


@dataclass(frozen=True)
class Place:
    """Where the arms run."""

    environments: Path  # a folder of virtual environments, each named for its peer
    openblas: Path | None  # preloaded for those on MLX
    threads: int  # of BLAS and of torch, the same for all
    pause: float  # seconds before each run

    def python(self, arm: str) -> str:
        """The interpreter of an arm."""
        return str(self.environments / arm / "bin" / "python") if arm in PEERS else sys.executable

    def variables(self, arm: str) -> dict[str, str]:
        """The environment of an arm's process."""
        project = {"PYTHONPATH": str(SCRIPTS_FOLDER.parent), "MLX_ENABLE_TF32": "0", "HF_HUB_OFFLINE": "1"}
        threads = {"OMP_NUM_THREADS": str(self.threads), "TOKENIZERS_PARALLELISM": "false"}
        blas = {"LD_PRELOAD": str(self.openblas)} if self.openblas is not None and arm in ON_MLX else {}
        return os.environ | project | threads | blas


@dataclass(frozen=True)
class Running:
    """A loaded arm."""

    name: str
    process: subprocess.Popen[str]
    errors: Path
    loaded: dict[str, Any]  # what it said after loading

    def run(self, tokens: int, pause: float = 0.0) -> dict[str, Any]:
        """One run's cost. Raises ArmError."""
        time.sleep(pause)
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{tokens}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # its last words are on stderr
        return _answer(self.name, self.process, self.errors)


@contextmanager
def running(names: list[str], job: Job, place: Place, scratch: Path) -> Iterator[list[Running]]:
    """All arms, loaded one after the other. Raises ArmError where one cannot be, or has loaded something else."""
    with ExitStack() as stack:
        arms = [stack.enter_context(_started(name, job, place, scratch)) for name in names]
        for arm in arms[1:]:
            if arm.loaded["hashes"] != arms[0].loaded["hashes"]:
                raise ArmError(f"{arm.name} has read other weights, pixels or ids than {arms[0].name}")
        yield arms


@contextmanager
def _started(name: str, job: Job, place: Place, scratch: Path) -> Iterator[Running]:
    told = json.dumps(asdict(job) | {"arm": name})
    errors = scratch / f"{name}.txt"
    with errors.open("w") as file:
        process = subprocess.Popen(
            [place.python(name), str(SCRIPTS_FOLDER / SCRIPTS[name]), told],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env=place.variables(name),
            cwd=scratch,
        )
    try:
        yield Running(name, process, errors, _answer(name, process, errors))
    finally:
        process.kill()
        process.wait()


def _answer(name: str, process: subprocess.Popen[str], errors: Path) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        said = errors.read_text(errors="replace").strip().splitlines()
        raise ArmError(f"{name} has stopped: {said[-1] if said else 'without a word'}")
    return json.loads(line)
