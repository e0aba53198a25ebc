"""`mlx-paligemma serve` as a program: its start, its ends, and one line for what keeps it from starting."""

import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from serving import chat_body

import mlx_paligemma
from mlx_paligemma.cli import serve as command
from mlx_paligemma.common.errors import BackendError, OptionError
from mlx_paligemma.serve.settings import Settings

ROOT = Path(mlx_paligemma.__file__).parent.parent
PROGRAM = [sys.executable, "-c", "import typer; from mlx_paligemma.cli.serve import serve; typer.run(serve)"]


@contextmanager
def program(*flags):
    """The running program and its address."""
    process = subprocess.Popen([*PROGRAM, "--port", "0", *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        line = next(line for line in process.stderr if "http://" in line)
        yield process, re.search(r"http://[\d.]+:\d+", line)[0]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_signal_ends_it_after_an_answer(number, code):
    with program("--model-name", "mine") as (process, address):
        assert httpx.get(f"{address}/v1/models").json()["data"][0]["id"] == "mine"
        body = chat_body(max_tokens=5) | {"model": "mine"}
        assert httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60).status_code == 200
        process.send_signal(number)
        _, rest = process.communicate(timeout=20)
        assert process.returncode == code
        assert "Traceback" not in rest


def test_it_listens_on_the_loopback_interface_alone():
    with program() as (_, address):
        assert address.startswith("http://127.0.0.1:")


def run(*flags) -> tuple[int, str]:
    done = subprocess.run([*PROGRAM, *flags], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, err = run("--port", str(taken.getsockname()[1]))
    assert code == 2 and err.count("\n") == 1 and "choose another port" in err


def test_a_model_that_is_not_there_is_one_line():
    code, err = run("--port", "0", "--model", "/nowhere/model")
    assert code == 1 and err.count("\n") == 1 and "no such folder" in err


def test_a_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "uvicorn" else True)
    with pytest.raises(BackendError, match=re.escape("uvicorn; install it with: pip install 'mlx-paligemma[server]'")):
        command._check_extra()


def test_importing_the_command_imports_nothing_of_the_extra():
    code = f"import sys, mlx_paligemma.cli.serve; assert not set({command.NEEDED!r}) & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_folder_is_called_by_its_name_alone(tmp_path):
    assert command._name(str(tmp_path)) == tmp_path.name
    assert (command._name("google/paligemma"), command._name(None)) == ("google/paligemma", "demo")


@pytest.mark.parametrize("bad", [{"max_rows": 0}, {"max_waiting": -1}, {"idle_timeout": float("inf")}, {"api_key": " "}], ids=str)
def test_settings_that_make_no_sense_are_refused(bad):
    with pytest.raises(OptionError, match=next(iter(bad)).replace("api_key", "API key")):
        Settings(**bad)
