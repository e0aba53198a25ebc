"""The server as a process of its own, and what is seen of it from outside: its memory and its queue."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).parent.parent.parent
STARTING = 60.0  # seconds
EVERY = 0.25  # seconds between two looks at the queue
SETTLED = 10.0  # seconds after which memory is looked at, to be compared with the end's


class ServerError(Exception):
    """The server did not start. The message is what it wrote."""


@dataclass
class Figures:
    """Of a server under load. Memory is its resident set, in bytes."""

    process: int
    address: str
    memory_before: int
    memory_settled: int | None = None
    memory_end: int = 0
    peak_open: float = 0.0  # answers that were made and waiting
    peak_waiting: float = 0.0
    looks: int = 0

    async def watch(self) -> None:
        """Look at the queue again and again, and once at memory, until cancelled."""
        started = time.monotonic()
        async with httpx.AsyncClient(timeout=30) as client:
            while True:
                await self._look(client)
                if self.memory_settled is None and time.monotonic() - started > SETTLED:
                    self.memory_settled = resident_bytes(self.process)
                await asyncio.sleep(EVERY)

    async def read_end(self) -> None:
        """After the load: memory, and the queue once more, which is empty now."""
        self.memory_end = resident_bytes(self.process)

    def as_dict(self, seconds: float) -> dict[str, object]:
        """For the report. `seconds`: how long the load took."""
        fields = ("memory_before", "memory_settled", "memory_end", "peak_open", "peak_waiting", "looks")
        return {"seconds_taken": round(seconds, 2)} | {name: getattr(self, name) for name in fields}

    async def _look(self, client: httpx.AsyncClient) -> None:
        text = (await client.get(f"{self.address}/metrics")).text
        decoding, waiting = (_figure(text, name) for name in ("decoding", "waiting"))
        self.peak_open, self.peak_waiting = max(self.peak_open, decoding + waiting), max(self.peak_waiting, waiting)
        self.looks += 1


@dataclass(frozen=True)
class ServerProcess:
    """A server that answers."""

    process: subprocess.Popen[bytes]
    address: str

    def figures(self) -> Figures:
        """A new count of what is seen of it."""
        return Figures(self.process.pid, self.address, resident_bytes(self.process.pid))


@contextmanager
def started(batch_size: int, max_waiting: int, openblas: Path | None = None) -> Iterator[ServerProcess]:
    """A server with the bundled model on a free port. Raises ServerError."""
    flags = ["--port", "0", "--batch-size", str(batch_size), "--max-waiting", str(max_waiting)]
    blas = {} if openblas is None else {"LD_PRELOAD": str(openblas)}
    variables = os.environ | {"PYTHONPATH": str(ROOT), "MLX_ENABLE_TF32": "0"} | blas
    command = [sys.executable, "-m", "mlx_paligemma", "serve", *flags]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"  # a file and not a pipe, which would fill up
        with log.open("wb") as written, subprocess.Popen(command, stderr=written, env=variables) as process:
            try:
                yield ServerProcess(process, _address(process, log))
            finally:
                _end(process)


def resident_bytes(process: int) -> int:
    """Memory that a process holds now, as `ps` tells it on Linux and macOS."""
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(process)], capture_output=True, text=True, check=True)
    return 1024 * int(shown.stdout)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where it listens, once it answers. Raises ServerError."""
    deadline = time.monotonic() + STARTING
    while process.poll() is None and time.monotonic() < deadline:
        found = re.search(r"(http://[\d.]+:\d+)/v1", log.read_text())
        with suppress(httpx.TransportError):
            if found is not None and httpx.get(f"{found[1]}/health").status_code == 200:
                return found[1]
        time.sleep(0.05)
    raise ServerError(f"the server did not start: {log.read_text()[-2000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()


def _figure(metrics: str, name: str) -> float:
    """One gauge of Prometheus's text."""
    found = re.search(rf"^mlx_paligemma_{name} (\S+)$", metrics, re.MULTILINE)
    if found is None:
        raise ServerError(f"/metrics has no {name}")
    return float(found[1])
