"""What a user waits for before anything is computed: building a step, `--help`, the import."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from statistics import median
from typing import Any

from .processes import OURS, SCRIPTS_FOLDER, Place

REPEATS = 7
IMPORT = "import time; t = time.perf_counter(); import mlx_paligemma; print(time.perf_counter() - t)"


def host_times(place: Place) -> dict[str, Any]:
    """Of bench_host.py, in mlx-vlm's environment, where both can be imported."""
    command = [place.python("mlx-vlm"), str(SCRIPTS_FOLDER / "bench_host.py")]
    done = subprocess.run(command, env=place.variables("mlx-vlm"), capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def start_up_times(place: Place) -> dict[str, float]:
    """Medians in seconds: the whole program `mlx-paligemma --help`, and the import within a running interpreter."""
    imports = [float(_output(place, "-c", IMPORT)) for _ in range(REPEATS)]
    return {"help_s": median(_help_seconds(place) for _ in range(REPEATS)), "import_s": median(imports)}


def _help_seconds(place: Place) -> float:
    started = time.perf_counter()
    _output(place, "-m", "mlx_paligemma", "--help")
    return time.perf_counter() - started


def _output(place: Place, *arguments: str) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=place.variables(OURS), capture_output=True, text=True, check=True).stdout
