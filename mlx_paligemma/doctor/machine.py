"""The machine and its Python. Knows neither mlx nor torch."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .. import __version__
from ..common.memory import gigabytes, memory_bytes
from .check import Check, Probes, failed, ok, warning

OLDEST_MACOS = 14  # MLX's wheels, and bfloat16 on MPS
OLDEST_PYTHON = (3, 11)
LITTLE_MEMORY = 8e9  # bytes
NEEDED = ("numpy", "pillow", "sentencepiece", "safetensors", "huggingface-hub")
CPUINFO = Path("/proc/cpuinfo")


def machine_probes() -> Probes:
    """Platform, chip, memory, Python, packages."""
    return {"platform": _platform, "chip": _chip, "memory": _memory, "Python": _python, "packages": _packages}


def _platform() -> Check:
    system, machine = platform.system(), platform.machine()
    if system == "Darwin":
        return _mac(platform.mac_ver()[0], machine)
    if system == "Linux":
        return ok(f"Linux {platform.release()} on {machine}, {' '.join(platform.libc_ver())}")
    return failed(
        f"{system} on {machine}", "MLX runs on macOS with Apple Silicon and on Linux; use one of them, or WSL 2 on Windows"
    )


def _mac(release: str, machine: str) -> Check:
    found = f"macOS {release} on {machine}"
    if machine != "arm64":
        return failed(
            f"{found}: this Python is one for Intel", "install a Python for Apple Silicon (arm64); MLX has no other on a Mac"
        )
    if int(release.partition(".")[0] or 0) < OLDEST_MACOS:
        return warning(found, f"update to macOS {OLDEST_MACOS} or later")
    return ok(found)


def _chip() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ok(f"{_chip_name() or platform.machine()}, {cores} cores for this program")


def _chip_name() -> str:
    """As the system calls it; "" if it does not say."""
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=5).stdout.strip()
    lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines() if CPUINFO.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _memory() -> Check:
    total, free = memory_bytes()
    detail = gigabytes(total) if free == total else f"{gigabytes(total)}, {gigabytes(free)} of it free"
    if total < LITTLE_MEMORY:
        return warning(detail, "this is enough for the demo; a 3B model wants 8 GB, and 4-bit weights")
    return ok(detail)


def _python() -> Check:
    found = f"{platform.python_version()} ({platform.machine()}) at {sys.executable}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        return failed(found, f"install Python {'.'.join(map(str, OLDEST_PYTHON))} or later")
    return ok(found)


def _packages() -> Check:
    found = {name: _version(name) for name in NEEDED}
    missing = [name for name, number in found.items() if number is None]
    detail = ", ".join(f"{name} {number or 'missing'}" for name, number in {"mlx-paligemma": __version__, **found}.items())
    return failed(detail, f"pip install {' '.join(missing)}") if missing else ok(detail)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
