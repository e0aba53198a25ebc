"""Starting costs little: what --help and an import read, and the processor time that they take."""

import importlib
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from program import program

import mlx_paligemma
from mlx_paligemma.cli.app import COMMANDS

ROOT = Path(mlx_paligemma.__file__).parent.parent
HEAVY = {
    "mlx", "torch", "torch_ref", "gradio", "transformers", "numpy", "PIL", "sentencepiece", "safetensors", "huggingface_hub",
}  # fmt: skip
HELP = "import sys; sys.argv = ['mlx-paligemma', '--help']; from mlx_paligemma.cli.app import main; main()"
IMPORT = "import mlx_paligemma"


def imported(code: str) -> dict[str, int]:
    """Modules that a fresh interpreter imports, and the microseconds of each with all that it imports itself."""
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split("|") for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {name.strip(): int(total) for _, total, name in lines[1:]}


def processor_seconds(code: str) -> float:
    """The best of five: of a fresh interpreter that runs `code`, less that of one that does nothing."""
    return min(_spent(code) for _ in range(5)) - min(_spent("") for _ in range(5))


def _spent(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("code", [HELP, IMPORT], ids=["--help", "import"])
def test_nothing_heavy_is_imported(code):
    assert not {name.split(".")[0] for name in imported(code)} & HEAVY


def test_help_reads_no_file_of_a_command():
    read = {name for name in imported(HELP) if name.startswith("mlx_paligemma.")}
    assert read == {"mlx_paligemma.cli", "mlx_paligemma.cli.app", "mlx_paligemma.common", "mlx_paligemma.common.errors"}


def test_an_import_reads_one_file():
    assert [name for name in imported(IMPORT) if name.startswith("mlx_paligemma")] == ["mlx_paligemma"]


@pytest.mark.parametrize(("code", "limit"), [(HELP, 0.3), (IMPORT, 0.05)], ids=["--help", "import"])
def test_the_processor_time_is_within_its_limit(code, limit):
    assert processor_seconds(code) < limit


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_a_function_in_the_file_of_its_name_and_its_help_begins_with_its_purpose(monkeypatch, capfd, name):
    python_name = name.replace("-", "_")
    function = getattr(importlib.import_module(f"mlx_paligemma.cli.{python_name}"), python_name)
    assert function.__doc__ == COMMANDS[name]
    code, out, err = program(monkeypatch, capfd)(name, "--help")
    assert (code, err) == (0, "")
    assert "--json" in out or "--model" in out
    assert COMMANDS[name].split(":")[0].split(",")[0] in " ".join(out.split())


def test_help_lists_all_commands_with_their_purpose(monkeypatch, capfd):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = program(monkeypatch, capfd)("--help")
    assert code == 0
    assert all(name in out and purpose in out for name, purpose in COMMANDS.items())


def test_an_unknown_command_is_wrong_usage(monkeypatch, capfd):
    assert program(monkeypatch, capfd)("generat")[0] == 2
