"""`mlx-paligemma generate`: answers about pictures."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from ..backends import Backend, open_backend
from ..common.decoding import Generation
from ..common.draw import draw_detections
from ..common.errors import ImageError, PaliGemmaError
from ..common.image import open_image
from ..common.results import Detection, GenerationResult, Stats
from ..common.sampling import SamplingOptions
from .app import FAILED, reporting
from .picture_writer import PictureWriter


class BackendName(StrEnum):
    """Choices of --backend."""

    mlx = "mlx"
    torch = "torch"


class DtypeName(StrEnum):
    """Choices of --dtype."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@dataclass(frozen=True)
class Job:
    """One answer to give: the pictures that it is about, and their name in the output."""

    name: str
    sources: tuple[str, ...]


def generate(  # noqa: PLR0913, PLR0917 - a command has many flags
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help='Such as "caption en", "answer en what is this?", "detect cat ; dog".')
    ],
    images: Annotated[
        list[str] | None, typer.Argument(help="Pictures: files or http(s) addresses. Each gets an answer of its own.")
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option("--image", help="Give it several times for one answer about all of them.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint folder or Hub id. Left out: the bundled demo.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    backend: Annotated[BackendName, typer.Option(help="MLX, or the PyTorch reference.")] = BackendName.mlx,
    dtype: Annotated[DtypeName | None, typer.Option(help="Numbers to compute in. Left out: as stored.")] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-m", help="New tokens at most.")] = 100,
    temperature: Annotated[float, typer.Option("--temp", "--temperature", help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens up to this probability.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Keep this many tokens; 0 keeps all.")] = 0,
    min_p: Annotated[float, typer.Option(help="Keep tokens this likely, compared with the likeliest.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="For answers that can be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per answer and line.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Draw boxes and masks: a picture file, or a folder.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures that are answered together.", min=1)] = 1,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say on stderr what the answers cost.")] = False,
) -> None:
    """Answer a prompt about one or more pictures."""
    if bool(images) == bool(image):
        raise typer.BadParameter("give pictures either as arguments or with --image", param_hint="IMAGES")
    with reporting():
        options = SamplingOptions(max_tokens, temperature, top_p, top_k, min_p, seed)
        jobs = [Job(name, (name,)) for name in images or []] or [Job(", ".join(image or []), tuple(image or []))]
        writer = None if output is None else PictureWriter(output, [source for job in jobs for source in job.sources], len(jobs))
        opened = open_backend(backend.value)
        network, processor = opened.load(model, dtype=dtype.value if dtype else None, revision=revision)
        printer = Printer(as_json, verbose, prefix=len(jobs) > 1, streams=len(jobs) == 1, prompt=prompt, writer=writer)
        failed = False
        for start in range(0, len(jobs), batch_size):
            failed |= _answer(jobs[start : start + batch_size], opened, network, processor, prompt, options, printer)
        raise typer.Exit(FAILED if failed else 0)


def _answer(
    jobs: Sequence[Job], backend: Backend, network: Any, processor: Any, prompt: str, options: SamplingOptions, printer: Printer
) -> bool:
    """Answer one batch and print it; True if a picture of it failed."""
    good: list[tuple[Job, list[Image.Image]]] = []
    for job in jobs:
        try:
            good.append((job, [open_image(source, allow_download=not _offline()) for source in job.sources]))
        except ImageError as error:
            printer.error(job, error)
    if good:
        rows = [pictures for _, pictures in good]
        generation = backend.start(network, processor, rows, [prompt] * len(rows), **asdict(options))
        interrupted = printer.follow(generation)
        for (job, pictures), result in zip(good, generation.results(), strict=True):
            printer.result(job, pictures[0], result)
        if interrupted:
            raise KeyboardInterrupt
    return len(good) < len(jobs)


@dataclass
class Printer:
    """Answers on stdout, everything else on stderr."""

    as_json: bool
    verbose: bool
    prefix: bool  # each line begins with the picture's name
    streams: bool
    prompt: str
    writer: PictureWriter | None

    def follow(self, generation: Generation) -> bool:
        """Run a generation, showing its text as it comes; True if the user interrupted it."""
        try:
            for chunks in generation:
                if self.streams and not self.as_json and chunks[0] is not None:
                    print(chunks[0].text, end="", flush=True)
        except KeyboardInterrupt:
            return True
        finally:
            if self.streams and not self.as_json:
                print(flush=True)
        return False

    def result(self, job: Job, picture: Image.Image, result: GenerationResult) -> None:
        """Print, and draw, a finished answer."""
        if self.as_json:
            print(json.dumps(as_record(job, self.prompt, result), ensure_ascii=False), flush=True)
        elif not self.streams:
            print(f"{job.name}: {result.text}", flush=True)
        if self.verbose:
            print(_cost(result.stats), file=sys.stderr)
        if self.writer is not None:
            print(f"wrote {self.writer.write(job.name, draw_detections(picture, result.detections))}", file=sys.stderr)

    def error(self, job: Job, error: PaliGemmaError) -> None:
        """Say that a picture failed; the others go on."""
        if self.as_json:
            print(json.dumps({"image": job.name, "prompt": self.prompt, "error": str(error)}, ensure_ascii=False), flush=True)
        print(f"error: {error}", file=sys.stderr)


def as_record(job: Job, prompt: str, result: GenerationResult) -> dict[str, Any]:
    """The JSON form of an answer; None stands where a number is missing, never NaN."""
    return {
        "image": job.name,
        "prompt": prompt,
        "text": result.text,
        "token_ids": result.token_ids,
        "finish_reason": result.finish_reason,
        "detections": [_detection_record(detection) for detection in result.detections],
        "stats": asdict(result.stats),
    }


def _detection_record(detection: Detection) -> dict[str, Any]:
    mask = None
    if detection.mask is not None:
        from pycocotools import mask as coco

        encoded = coco.encode(np.asfortranarray(detection.mask.astype(np.uint8)))
        mask = {"size": list(detection.mask.shape), "counts": encoded["counts"].decode("ascii")}
    return {"label": detection.label, "box": list(detection.box), "score": detection.score, "mask": mask}


def _cost(stats: Stats) -> str:
    first = "-" if stats.time_to_first_token_s is None else f"{stats.time_to_first_token_s:.3f} s"
    speed = "-" if stats.generation_tps is None else f"{stats.generation_tps:.1f} tokens/s"
    return (
        f"Prompt: {stats.prompt_tokens} tokens, first answer token after {first}. "
        f"Generation: {stats.generation_tokens} tokens, {speed}. Peak memory: {stats.peak_memory_bytes / 1e9:.3f} GB."
    )


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
