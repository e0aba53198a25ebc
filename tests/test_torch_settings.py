"""Flags for torch on a Mac: set in the environment before torch is imported, and so that torch starts."""

import os
import subprocess
import sys

import pytest
from program import PICTURE, one_line, program

from mlx_paligemma.cli.torch_settings import prepare_torch

HIGH, LOW, FALLBACK = "PYTORCH_MPS_HIGH_WATERMARK_RATIO", "PYTORCH_MPS_LOW_WATERMARK_RATIO", "PYTORCH_ENABLE_MPS_FALLBACK"
# Stands in for torch: tells what it finds in the environment when it is imported, and is gone.
STUB = f"""import os, sys
print(*(os.environ.get(name) for name in {(HIGH, LOW, FALLBACK)}), file=sys.stderr)
raise ModuleNotFoundError("no torch", name="torch")
"""


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in (HIGH, LOW, FALLBACK):
        monkeypatch.setenv(name, "")  # so that it is put back at the end, whatever the code under test does
        monkeypatch.delenv(name)


@pytest.mark.parametrize("fraction", [1e-6, 0.05, 0.7, 1.0])
def test_both_marks_are_set_and_the_low_one_is_the_lower(fraction):
    prepare_torch(False, fraction)
    assert float(os.environ[HIGH]) == fraction
    assert 0 < float(os.environ[LOW]) < fraction
    assert FALLBACK not in os.environ


def test_without_flags_nothing_is_set():
    prepare_torch(False, None)
    assert not {HIGH, LOW, FALLBACK} & set(os.environ)


def test_the_fallback_is_asked_for_alone():
    prepare_torch(True, None)
    assert os.environ[FALLBACK] == "1"
    assert not {HIGH, LOW} & set(os.environ)


@pytest.mark.parametrize("command", ["generate", "chat"])
@pytest.mark.parametrize("fraction", ["0", "-1", "1.01", "nan", "inf"])
def test_a_fraction_that_is_none_is_one_line_and_exit_2(monkeypatch, capfd, command, fraction):
    prompt = ("-p", "caption en") if command == "generate" else ()
    code, out, err = program(monkeypatch, capfd)(command, PICTURE, *prompt, "--mps-memory-fraction", fraction)
    assert (code, out) == (2, "")
    one_line(err, "--mps-memory-fraction", fraction, "at most 1")
    assert HIGH not in os.environ


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_torch_finds_the_settings_when_it_is_imported(tmp_path, command):
    (tmp_path / "torch.py").write_text(STUB)
    prompt = ("-p", "caption en") if command == "generate" else ()
    flags = ("--backend", "torch", "--mps-fallback", "--mps-memory-fraction", "0.7")
    done = subprocess.run(
        [sys.executable, "-m", "mlx_paligemma", command, PICTURE, *prompt, *flags],
        env=os.environ | {"PYTHONPATH": str(tmp_path)}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    settings, error = done.stderr.splitlines()
    assert settings == "0.7 0.56 1"
    assert error.startswith("error: ") and "mlx-paligemma[torch]" in error
    assert done.returncode == 1
