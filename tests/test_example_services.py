"""The launchd agent and the Dockerfile of examples/, as far as neither launchd nor Docker is needed: their words, run here."""

import http.client
import json
import os
import plistlib
import re
import shutil
import subprocess
import sys
import tomllib
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer

import mlx_paligemma
from mlx_paligemma.cli.serve import serve

ROOT = Path(mlx_paligemma.__file__).parent.parent
EXAMPLES = ROOT / "examples"
KEY = "a key"


def parsed(words: list[str]) -> dict:
    """What the command makes of its words. Raises click's UsageError for any that it does not know."""
    app = typer.Typer()
    app.command()(serve)
    return typer.main.get_command(app).make_context("serve", list(words)).params


@pytest.fixture
def agent():
    return plistlib.loads((EXAMPLES / "com.example.mlx-paligemma.plist").read_bytes())


def test_the_agent_starts_a_command_that_there_is(agent, monkeypatch):
    program, command, *words = agent["ProgramArguments"]
    assert (Path(program).name, command) == ("mlx-paligemma", "serve")
    for name, value in agent["EnvironmentVariables"].items():
        monkeypatch.setenv(name, value)
    options = parsed(words)
    assert (options["host"], options["port"], options["model"]) == ("127.0.0.1", 8080, "google/paligemma2-3b-mix-448")
    assert options["api_key"] == "CHANGE-ME"


def test_the_agent_is_named_like_its_file_and_starts_again_after_failures(agent):
    assert f"{agent['Label']}.plist" == "com.example.mlx-paligemma.plist"
    assert agent["RunAtLoad"] is True and agent["KeepAlive"] == {"SuccessfulExit": False}
    assert agent["ThrottleInterval"] >= 10  # launchd's own default
    assert agent["ExitTimeOut"] > 60  # what `serve` gives to answers that run


def test_the_commands_of_the_page_fill_the_agent_in(tmp_path, agent):
    code = re.search(r"```sh\n(agent=.*?)launchctl", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    done = subprocess.run(["sh", "-ec", code], cwd=EXAMPLES, env=os.environ | {"HOME": str(tmp_path)}, check=False)
    assert done.returncode == 0
    written = tmp_path / "Library" / "LaunchAgents" / "com.example.mlx-paligemma.plist"
    assert written.stat().st_mode & 0o777 == 0o600
    filled = plistlib.loads(written.read_bytes())
    assert re.fullmatch("[0-9a-f]{32}", filled.pop("EnvironmentVariables")["MLX_PALIGEMMA_API_KEY"])
    assert filled["StandardErrorPath"] == f"{tmp_path}/Library/Logs/mlx-paligemma.log"
    assert "YOU" not in str(filled) and filled.keys() == agent.keys() - {"EnvironmentVariables"}


@pytest.fixture(scope="module")
def steps():
    """The Dockerfile's instructions: each one's name, and what it is given."""
    text = re.sub(r"^#.*\n", "", (EXAMPLES / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line.split(maxsplit=1) for line in text.replace("\\\n", " ").splitlines() if line]
    return [(name, " ".join(given.split())) for name, given in lines]


def given(steps, wanted: str) -> str:
    (found,) = [given for name, given in steps if name == wanted]
    return found


def test_everything_that_the_image_copies_is_there_and_is_what_the_package_is_made_of(steps):
    copied = {word for name, words in steps if name == "COPY" for word in words.split()[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    files = {project["project"]["readme"], *project["project"]["license-files"]}
    assert copied == {"pyproject.toml", "constraints.txt", *files, *packages}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line.startswith("!")}
    assert let_in == copied


def test_the_image_runs_as_a_user_of_its_own(steps):
    names = [name for name, _ in steps]
    assert given(steps, "USER") not in ("root", "0")
    assert names.index("USER") < names.index("ENTRYPOINT") and "RUN" not in names[names.index("USER") :]
    assert f"useradd --create-home --uid {given(steps, 'USER')} " in " ".join(given for name, given in steps if name == "RUN")


@contextmanager
def container(steps, folder: Path, *flags: str, **environment: str):
    """The entry point's process on this machine; `mlx-paligemma` is this checkout."""
    program = folder / "mlx-paligemma"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m mlx_paligemma "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if name != "MLX_PALIGEMMA_API_KEY"}
    environment = clean | {"PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"} | environment
    process = subprocess.Popen(
        [*json.loads(given(steps, "ENTRYPOINT")), *flags], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def health(steps, port: str) -> int:
    """Exit code of the health check."""
    command = json.loads(re.search(r"CMD (\[.*\])", given(steps, "HEALTHCHECK"))[1])
    assert sum(word.count("8080") for word in command) == 1
    command = [sys.executable, *(word.replace("8080", port) for word in command[1:])]
    return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode


def test_the_container_serves_with_its_key_is_found_healthy_and_ends_when_told(steps, tmp_path):
    flags = ("--host", "127.0.0.1", "--port", "0")
    with container(steps, tmp_path, *flags, MLX_PALIGEMMA_API_KEY=KEY) as process:
        line = next(line for line in process.stderr if "http://" in line)
        port = re.search(r"http://127\.0\.0\.1:(\d+)", line)[1]
        next(line for line in process.stderr if "startup complete" in line or "running" in line.lower())
        assert health(steps, port) == 0
        assert [asked(port, key) for key in (KEY, "another")] == [200, 401]
        process.terminate()
        process.communicate(timeout=30)
        assert process.returncode in (0, -15)
    assert health(steps, port) != 0


def asked(port: str, key: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=20)
    connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
    return connection.getresponse().status


def test_the_container_does_not_start_without_a_key(steps, tmp_path):
    for environment in ({}, {"MLX_PALIGEMMA_API_KEY": ""}):
        with container(steps, tmp_path, **environment) as process:
            _, err = process.communicate(timeout=60)
        assert process.returncode != 0 and "MLX_PALIGEMMA_API_KEY" in err and "http://" not in err


def test_the_container_listens_for_the_port_that_it_exposes(steps):
    words = re.search(r"exec mlx-paligemma serve (.*) \"\$@\"", json.loads(given(steps, "ENTRYPOINT"))[2])[1].split()
    options = parsed(words)
    assert (options["host"], str(options["port"])) == ("0.0.0.0", given(steps, "EXPOSE"))


def test_the_library_that_the_image_preloads_is_of_the_package_that_it_installs(steps):
    if shutil.which("dpkg") is None:
        pytest.skip("dpkg knows which package a file is of, and is not here")
    package = re.search(r"--no-install-recommends (\S+)", " ".join(given for _, given in steps))[1]
    listed = subprocess.run(["dpkg", "-L", package], capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip(f"{package} is not installed here")
    library = re.search(r"LD_PRELOAD=(\S+)", given(steps, "ENV"))[1]
    assert f"/{library}\n" in listed.stdout
    code = f"print([line for line in open('/proc/self/maps') if {library.split('.')[0]!r} in line])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"LD_PRELOAD": library}, capture_output=True, text=True, check=True
    )
    assert "openblas-pthread" in done.stdout and done.stderr == ""
