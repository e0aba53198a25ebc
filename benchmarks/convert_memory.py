"""What `mlx-paligemma convert` holds in memory at most: about one file of its input and one of its output.

Usage: python benchmarks/convert_memory.py [--shard-bytes N]; needs 8 GB of disk, and Linux for the process's own figures.
A random checkpoint of 2 GB in float32 is written in files of 0.5 GB and converted in each way in a process of its own. Counted are
what MLX held (peak), and what the process had of its own beyond what it had after its imports (RssAnon, sampled every 2 ms);
VmHWM has mapped files in it too, which the system takes back when it likes. Limit: 1.3 times the largest file read plus the
largest file written. Exit 1 where one is above it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from comparison.random_checkpoint import write_checkpoint

from mlx_paligemma.common.config import PaliGemmaConfig
from mlx_paligemma.common.hub import bundled_checkpoint

FACTOR = 1.3  # of the largest file that is read
VISION = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6}
TEXT = {"model_type": "gemma", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 100_000}  # fmt: skip
SOURCE, PACKED = "source", "quantised"
WAYS: dict[str, tuple[str, dict[str, Any]]] = {  # what is read, and the wishes
    "as stored": (SOURCE, {}),
    "bfloat16": (SOURCE, {"dtype": "bfloat16"}),
    PACKED: (SOURCE, {"quantize": True}),
    "to hf": (SOURCE, {"to": "hf"}),
    "dequantised": (PACKED, {"dequantize": True}),
    "dequantised, float32, to hf": (PACKED, {"to": "hf", "dtype": "float32"}),
}


def main(shard_bytes: Annotated[int, typer.Option(help="Bytes of one file.")] = 500_000_000) -> None:
    """Write, convert, measure."""
    print("| way | read | written | MLX | process | mapped too | limit | within |\n|---|---|---|---|---|---|---|---|")
    within = []
    with tempfile.TemporaryDirectory(prefix="paligemma-memory-") as scratch:
        _write_source(Path(scratch) / SOURCE, shard_bytes)
        for name, (source, wishes) in WAYS.items():
            within.append(_measured(name, Path(scratch) / source, Path(scratch) / name, wishes | {"shard_bytes": shard_bytes}))
    raise typer.Exit(int(not all(within)))


def _write_source(folder: Path, shard_bytes: int) -> None:
    folder.mkdir()
    index = PaliGemmaConfig.from_folder(bundled_checkpoint()).image_token_index
    data = {"model_type": "paligemma", "text_config": TEXT, "vision_config": VISION, "image_token_index": index}
    write_checkpoint(folder, PaliGemmaConfig.from_dict(data), "float32", shard_bytes)
    (folder / "tokenizer.model").write_bytes((bundled_checkpoint() / "tokenizer.model").read_bytes())


def _measured(name: str, source: Path, target: Path, wishes: dict[str, Any]) -> bool:
    job = json.dumps({"source": str(source), "target": str(target), "wishes": wishes})
    code = f"from convert_memory import run; run({job!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    read, written = _largest(source), _largest(target)
    limit = FACTOR * read + written
    within = max(found["mlx"], found["own"]) <= limit
    figures = (read, written, found["mlx"], found["own"], found["all"], limit)
    print(f"| {name} | {' | '.join(f'{count / 1e9:.2f} GB' for count in figures)} | {'yes' if within else 'NO'} |", flush=True)
    return within


def _largest(folder: Path) -> int:
    return max(path.stat().st_size for path in folder.glob("*.safetensors"))


def run(job: str) -> None:
    """In a process of its own: convert, and print the peaks in bytes."""
    import mlx.core as mx

    from mlx_paligemma.converted_folder import convert
    from mlx_paligemma.quantization import Recipe

    asked = json.loads(job)
    wishes = asked["wishes"] | ({"recipe": Recipe()} if asked["wishes"].pop("quantize", False) else {})
    own, everything = _status("RssAnon"), _status("VmRSS")
    with _Peak() as peak:
        convert(asked["source"], asked["target"], **wishes)
    print(json.dumps({"mlx": mx.get_peak_memory(), "own": peak.bytes - own, "all": _status("VmHWM") - everything}))


class _Peak:
    """The most that the process had of its own, sampled."""

    def __init__(self) -> None:
        self.bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.is_set():
            self.bytes = max(self.bytes, _status("RssAnon"))
            time.sleep(0.002)


def _status(name: str) -> int:
    """Bytes, of Linux's own count for this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    typer.run(main)
