"""`mlx-paligemma generate`: answers about pictures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from ..backends import Backend, open_backend
from ..common.checkpoint import Checkpoint, read_checkpoint
from ..common.errors import OptionError, PaliGemmaError
from ..common.hub import find_folder
from ..common.memory import Row
from ..common.processor import PaliGemmaProcessor
from ..common.sampling import SamplingOptions
from ..common.tokenizer import PaliGemmaTokenizer
from . import flags
from .app import FAILED, reporting
from .flags import BackendName
from .picture_writer import MaskWriter, PictureWriter
from .printer import Printer, Style, progress
from .results_place import FormatName, ResultsPlace
from .sources import Job, joint_job, separate_jobs, video_job
from .torch_settings import prepare_torch


@dataclass(frozen=True)
class Asker:
    """What the batches of a run share."""

    backend: Backend
    network: Any
    processor: Any
    options: SamplingOptions
    printer: Printer

    def ask(self, jobs: Sequence[Job]) -> bool:
        """Answer one batch and hand the answers on; True if a picture of it failed.

        Raises:
            KeyboardInterrupt: after handing on what there was.
        """
        good = [(job, pictures) for job in jobs if (pictures := self._open(job))]
        if good:
            rows, prompts = [pictures for _, pictures in good], [self.printer.prompt] * len(good)
            generation = self.backend.start(self.network, self.processor, rows, prompts, **asdict(self.options))
            interrupted = self.printer.follow(generation)
            for (job, pictures), result in zip(good, generation.results(), strict=True):
                self.printer.result(job, pictures[0], result)
            if interrupted:
                raise KeyboardInterrupt
        return len(good) < len(jobs)

    def _open(self, job: Job) -> list[Image.Image]:
        try:
            return job.open()
        except PaliGemmaError as error:
            self.printer.error(job, error)
            return []


def generate(  # noqa: PLR0913, PLR0917 - a command has many flags
    prompt: Annotated[
        str, typer.Option("--prompt", "-p", help='Such as "caption en", "answer en what is this?", "detect cat ; dog".')
    ],
    images: Annotated[
        list[str] | None,
        typer.Argument(
            help="Pictures: files, http(s) addresses, folders, or patterns in quotes ('photos/**/*.jpg'). Each gets an answer."
        ),
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option("--image", help="Give it several times for one answer about all of them.")
    ] = None,
    video: Annotated[str | None, typer.Option(help="One answer about frames of a video file.")] = None,
    frames: Annotated[int, typer.Option(help="How many, evenly spaced.", min=1)] = 16,
    model: flags.Model = None,
    revision: flags.Revision = None,
    backend: flags.Backend = BackendName.mlx,
    dtype: flags.Dtype = None,
    mps_fallback: flags.MpsFallback = False,
    mps_memory_fraction: flags.MpsMemoryFraction = None,
    max_tokens: flags.MaxTokens = 100,
    temperature: flags.Temperature = 0.0,
    top_p: flags.TopP = 1.0,
    top_k: flags.TopK = 0,
    min_p: flags.MinP = 0.0,
    seed: flags.Seed = None,
    grammar: flags.Grammar = True,
    min_score: flags.MinScore = 0.0,
    logprobs: Annotated[bool, typer.Option("--logprobs", help="Each token's log probability, in JSON.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per answer and line, on stdout.")] = False,
    form: Annotated[FormatName | None, typer.Option("--format", help="Write the answers to -o: a file, for yolo a folder.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the results at -o; what is answered is not asked again.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Without --format: draw boxes and masks, to a picture file or a folder.")
    ] = None,
    masks: Annotated[Path | None, typer.Option(help="Folder for each mask as a PNG.")] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures that are answered together.", min=1)] = 1,
    verbose: flags.Verbose = False,
) -> None:
    """Answer a prompt about one or more pictures."""
    if [bool(images), bool(image), video is not None].count(True) != 1:
        raise typer.BadParameter("give pictures either as arguments, or with --image, or with --video", param_hint="IMAGES")
    with reporting():
        prepare_torch(mps_fallback, mps_memory_fraction)
        options = SamplingOptions(
            max_tokens, temperature, top_p, top_k, min_p, seed, grammar=grammar, token_logprobs=logprobs, min_score=min_score
        )
        jobs = separate_jobs(images or []) or [video_job(video, frames) if video is not None else joint_job(image or [])]
        printer = _printer(jobs, prompt, as_json, verbose, output, form, resume, masks)
        if printer.results is not None and not (jobs := printer.results.remaining(jobs)):
            printer.results.finish()  # nothing is left to ask: no model is needed
            raise typer.Exit
        opened, folder = open_backend(backend.value), find_folder(model, revision)
        _check_prompt(read_checkpoint(folder), prompt, jobs)
        network, processor = opened.load(model and folder, dtype=dtype.value if dtype else None)
        failed = _ask_all(Asker(opened, network, processor, options, printer), jobs, batch_size)
        raise typer.Exit(FAILED if failed else 0)


def _check_prompt(checkpoint: Checkpoint, prompt: str, jobs: Sequence[Job]) -> None:
    """Raises PromptError before the weights are read, which takes its time."""
    processor = PaliGemmaProcessor(checkpoint.config, PaliGemmaTokenizer.from_folder(checkpoint.folder))
    processor.check_prompt(prompt, max(len(job.sources) for job in jobs))  # a video may have fewer frames than are asked for


def _printer(
    jobs: Sequence[Job],
    prompt: str,
    as_json: bool,
    verbose: bool,
    output: Path | None,
    form: FormatName | None,
    resume: bool,
    masks: Path | None,
) -> Printer:
    """Who gets the answers. Raises OptionError where flags do not fit together or a place cannot be written."""
    if output is None and form is not None:
        raise OptionError(f"--format {form} needs a place to write to; add -o")
    if form is None and resume:
        raise OptionError("--resume goes on with the results of --format; add --format and -o")
    if form not in (None, FormatName.json) and (jobs[0].frames or len(jobs[0].sources) > 1):
        raise OptionError(f"--format {form} is about single pictures; for an answer about several, use --format json")
    results = None if form is None or output is None else ResultsPlace(form, output, prompt, resume)
    sources = [source for job in jobs for source in job.sources]
    several = Style.lines if len(jobs) > 1 else Style.stream
    style = Style.json if as_json else several if results is None else Style.silent
    pictures = None if output is None or results is not None else PictureWriter(output, sources, len(jobs))
    mask_writer = None if masks is None else MaskWriter(masks, sources, [job.name for job in jobs])
    return Printer(style, verbose, prompt, pictures, mask_writer, results)


def _ask_all(asker: Asker, jobs: Sequence[Job], batch_size: int) -> bool:
    """Answer all jobs, batch by batch: memory does not grow with their number. True if a picture failed."""
    results = asker.printer.results
    batch_size, failed = _fitting(asker, jobs, batch_size), False
    with results.collecting(jobs) if results else nullcontext(), progress(len(jobs), wanted=results is not None) as advance:
        for start in range(0, len(jobs), batch_size):
            batch = jobs[start : start + batch_size]
            failed |= asker.ask(batch)
            asker.backend.free()
            advance(len(batch))
    return failed


def _fitting(asker: Asker, jobs: Sequence[Job], wanted: int) -> int:
    """`wanted`, or as many rows as the memory holds together. The answers are the same, and a long run is not to end for this."""
    wanted = min(wanted, len(jobs))
    if wanted == 1:
        return wanted
    row = Row(1, len(asker.processor.tokenizer.encode_prefix(asker.printer.prompt)), asker.options.max_tokens)
    most = max(asker.backend.fitting_rows(asker.network, row), 1)
    if most < wanted:
        print(f"note: {most} pictures are answered together instead of {wanted}: memory is free for no more", file=sys.stderr)
    return min(wanted, most)
