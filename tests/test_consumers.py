"""Folders that convert writes are read by transformers and mlx-vlm, and theirs by us: benchmarks/consumers.py, run as a whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENVIRONMENTS = ROOT / ".venv-bench"


@pytest.mark.slow
@pytest.mark.skipif(
    not (ENVIRONMENTS / "mlx-vlm" / "bin" / "python").exists(), reason="needs mlx-vlm: `make consumers` installs it"
)
def test_every_reader_computes_what_we_compute():
    command = [sys.executable, str(ROOT / "benchmarks" / "consumers.py"), "--environments", str(ENVIRONMENTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's count of a process's memory")
def test_converting_takes_about_one_file_of_input_and_one_of_output():
    command = [sys.executable, str(ROOT / "benchmarks" / "convert_memory.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
