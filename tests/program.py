"""The command line program, run in this process."""

import sys
from pathlib import Path

import pytest

from mlx_paligemma.cli.app import main

PICTURE = str(Path(__file__).parent.parent / "mlx_paligemma" / "demo" / "shapes.png")


def program(monkeypatch, capfd):
    """A function that runs the program: arguments -> (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["mlx-paligemma", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return stop.value.code or 0, out, err

    return call


def one_line(err, *words):
    assert err.count("\n") == 1, err
    assert all(word in err for word in words), err
